//! The layers with fused kernels for their values and gradients.

use std::cell::OnceCell;

use candle_core::{Result, Tensor};

use super::graft::{graft, graft_both};
use super::{Turn, vector};
use crate::model::fused;
use crate::model::fused::activation::Gated;
use crate::model::kernels::activation::Activation;
use crate::model::ledger::Param;

/// As kernels take it: without a graph and without gaps.
fn plain(x: &Tensor) -> Result<Tensor> {
    x.detach().contiguous()
}

/// A layer norm with a bias, or else an RMSNorm, with a factor (C) that is made of the weight.
pub fn norm(
    weight: Param,
    factor: Tensor,
    bias: Option<Param>,
    epsilon: f32,
    x: &Tensor,
) -> Result<Tensor> {
    let constant = bias.as_ref().map(vector).transpose()?;
    let y = fused::norm::forward(&plain(x)?, &factor, constant.as_ref(), epsilon)?;
    graft(x, y, move |x, _, g| {
        let x = x.contiguous()?;
        let (gx, moments) = fused::norm::backward(&x, g, &factor, bias.is_some(), epsilon)?;
        // Both in one launch, if one is wanted.
        let made = OnceCell::new();
        let sums = |which: usize| {
            if made.get().is_none() {
                let sums = fused::norm::column_sums(&x, g, &moments, factor.dims1()?)?;
                let _ = made.set(sums);
            }
            made.get().map_or_else(|| candle_core::bail!("no sums"), |sums| sums.get(which))
        };
        weight.find(|| sums(0))?;
        if let Some(bias) = &bias {
            bias.find(|| sums(1))?;
        }
        Ok(Some(gx))
    })
}

/// The number of a function in `fused/kernels/activation.cu`.
fn curve(kind: Activation) -> u32 {
    match kind {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Relu => 2,
        Activation::Silu => 3,
    }
}

pub fn activate(kind: Activation, x: &Tensor) -> Result<Tensor> {
    let curve = curve(kind);
    let y = fused::activation::forward(curve, &plain(x)?)?;
    graft(x, y, move |x, _, g| fused::activation::backward(curve, &x.contiguous()?, g).map(Some))
}

pub fn activate_gated(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let curve = curve(kind);
    let y = fused::activation::gated_forward(curve, Gated::Apart(&plain(gate)?, &plain(up)?))?;
    graft_both(gate, up, y, move |gate, up, _, g| {
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let apart = Gated::Apart(&gate, &up);
        let (g_gate, g_up) = fused::activation::gated_backward(curve, apart, g)?;
        Ok([Some(g_gate), g_up])
    })
}

pub fn activate_gated_fused(kind: Activation, both: &Tensor) -> Result<Tensor> {
    let curve = curve(kind);
    let y = fused::activation::gated_forward(curve, Gated::Fused(&plain(both)?))?;
    graft(both, y, move |both, _, g| {
        let both = both.contiguous()?;
        let (by_both, _) = fused::activation::gated_backward(curve, Gated::Fused(&both), g)?;
        Ok(Some(by_both))
    })
}

pub fn masked_softmax(s: &Tensor, scale: f32, cap: Option<f32>, mask: &Tensor) -> Result<Tensor> {
    let p = fused::softmax::forward(&plain(s)?, scale, cap, &plain(mask)?)?;
    graft(s, p, move |s, p, g| {
        fused::softmax::backward(&s.contiguous()?, p, g, scale, cap).map(Some)
    })
}

pub fn turn(turn: Turn, x: &Tensor) -> Result<Tensor> {
    let Turn { cosines, sines, pairs, head_dim, which } = turn;
    let (turned, of) = (which.turned, which.of);
    let heads = fused::rotary::Heads { head_dim, pairs, turned, of };
    let y = fused::rotary::turn(&plain(x)?, &cosines, &sines, heads, 1.0)?;
    // A turn is undone by the turn the other way, which is also the gradient's.
    graft(x, y, move |_, _, g| fused::rotary::turn(g, &cosines, &sines, heads, -1.0).map(Some))
}

#[cfg(all(test, unix))]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;
    use serde_json::Value;

    use crate::model::Model;
    use crate::model::fused::stand_in::{close, fused, some};
    use crate::model::weights::{Kernels, Place, TensorSpec, View, Want, Weights, Who};
    use crate::tokens::Packed;

    /// A small model of this architecture with random weights.
    fn model(of: &str) -> (Model, Weights) {
        let arch = crate::model::ARCHES.iter().find(|arch| arch.model_type == of).expect(of);
        let config: Value = serde_json::from_str(arch.tiny).expect(of);
        let model = Model::from_config(&config).expect(of);
        let tensor = |(spec, seed): (TensorSpec, u64)| {
            let values = (some(&spec.shape, seed) * 0.4).expect("values");
            (spec.name, values)
        };
        let tensors = model.specs().into_iter().zip(0..).map(tensor).collect();
        let weights = Weights::new(model.specs(), tensors).expect("weights");
        (model, weights.with_kernels(Kernels::Composed))
    }

    /// Everything that passes over a model give: values of all heads, norms and gradients.
    fn passes(model: &Model, weights: &Weights) -> BTreeMap<String, candle_core::Tensor> {
        let ids: Vec<u32> = (0..19).map(|i| (i * 37 + 5) % 300).collect();
        let packed = Packed::new([&ids[..11], &ids[11..]]);
        let rows: Vec<u32> = packed.all_rows().into_iter().step_by(3).collect();
        let targets: Vec<u32> = rows.iter().map(|row| ids[*row as usize]).collect();
        let mut found = BTreeMap::new();
        let mut run = |what: &str, want: &dyn Fn(&TensorSpec) -> Want| -> anyhow::Result<()> {
            let view: View = weights.view(Who::Patient, want)?;
            let h = model.hidden(&view, &packed)?;
            let token = model.token_logp(&view, &h, &rows, &targets)?;
            let rude = (some(&[300], 7).sqr()? * 0.05)?;
            let absent = model.absent_logp(&view, &h, &rows, &rude)?;
            // A reference that is another model: its states are turned around.
            let theirs = (h.detach() * -0.5)?;
            let reference = weights.frozen(Who::Patient)?;
            let kl = model.kl(&view, &reference, &h, &theirs, &rows)?;
            let sum = (token.mean_all()? + (absent.mean_all()? * 3.0)? + kl.mean_all()?)?;
            for (name, value) in [("token", token), ("absent", absent), ("kl", kl)] {
                found.insert(format!("{what}: {name}"), value.detach());
            }
            view.backward(sum)?;
            let harvest = view.harvest()?;
            for (name, square) in harvest.squares {
                let square = candle_core::Tensor::new(&[square.sqrt()], &Device::Cpu)?;
                found.insert(format!("{what}: {name}"), square);
            }
            found.extend(harvest.gradients.into_iter().map(|(n, t)| (format!("{what}: {n}"), t)));
            Ok(())
        };
        let in_blocks = |spec: &TensorSpec| matches!(spec.place, Place::Block(_));
        run("norms", &|spec| if in_blocks(spec) { Want::Norm } else { Want::Nothing })
            .expect("norms");
        run("gradients", &|_| Want::Gradient).expect("gradients");
        found
    }

    /// Models that have all kinds of layers between them: both norms, learned positions and all
    /// kinds of rotary ones, every form of an MLP, caps, windows, and norms of heads.
    #[test]
    fn models_with_fused_kernels_are_the_composed_ones() {
        for of in ["gpt2", "gpt_neox", "gemma2", "phi3", "qwen3"] {
            let (model, weights) = model(of);
            let wanted = passes(&model, &weights);
            let found = fused(|| passes(&model, &weights));
            assert_eq!(found.len(), wanted.len(), "{of}");
            for (name, wanted) in &wanted {
                close(&format!("{of}: {name}"), &found[name], wanted, 2e-4);
            }
        }
    }
}
