//! What is made of a chunk of the output head's products (m,V).

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Address, Grid, launch};
use super::{blank, is, is_whole, size};

/// Most threads of a block: rows are few and long.
const THREADS: u32 = 512;

/// What is computed at each position.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// log p(token): the tokens (m), u32.
    Token(&'a Tensor),
    /// ln(1 − Σ_v w_v p_v): the weight w of each token (V), and the least probability whose
    /// logarithm is taken.
    Absent(&'a Tensor, f32),
    /// KL(p_ref ‖ p): the reference's products (m,V).
    Reference(&'a Tensor),
}

/// The arguments of all three kernels: they differ in what `target` is.
#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    products: Address,
    target: Address,
    values: Address,
    slopes: Address,
    vocabulary: u32,
    scale: f32,
    cap: f32,
    least: f32,
}

/// The values (m) of the logits `cap(scale·z)` of products z (m,V), and with `slopes` their slopes
/// by the products (m,V). `cap(x)` is `c·tanh(x / c)` where there is a cap.
pub fn values(
    products: &Tensor,
    scale: f32,
    cap: Option<f32>,
    target: Target,
    slopes: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let ((rows, vocabulary), device) = (products.dims2()?, products.device());
    is("products", products, &[rows, vocabulary], device)?;
    let (name, target, least) = match target {
        Target::Token(tokens) => {
            if tokens.dims() != [rows] || tokens.dtype() != DType::U32 {
                bail!("tokens: {:?} of {:?} for {rows} rows", tokens.dims(), tokens.dtype());
            }
            is_whole("tokens", tokens, device)?;
            ("head_token", tokens, 0.0)
        }
        Target::Absent(weights, least) => {
            is("weights of tokens", weights, &[vocabulary], device)?;
            ("head_absent", weights, least)
        }
        Target::Reference(theirs) => {
            is("products of the reference", theirs, &[rows, vocabulary], device)?;
            ("head_reference", theirs, 0.0)
        }
    };
    let found = blank(rows, DType::F32, device)?;
    let by_products = slopes.then(|| blank((rows, vocabulary), DType::F32, device)).transpose()?;
    let grid = Grid::of_rows(rows, vocabulary, THREADS);
    let (vocabulary, cap) = (size(vocabulary)?, cap.unwrap_or(0.0));
    let (reads, writes) = ([products, target].map(Some), [Some(&found), by_products.as_ref()]);
    // SAFETY: the shapes are checked, and what is written is new.
    unsafe {
        launch(name, device, grid, reads, writes, |[products, target], [values, slopes]| {
            Arguments { products, target, values, slopes, vocabulary, scale, cap, least }
        })?;
    }
    Ok((found, by_products))
}

#[cfg(all(test, unix))]
mod tests {
    use candle_core::{D, Device, Var};

    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    const LEAST: f64 = 1e-4;

    /// Values, and their slopes by candle's backward pass, in f64.
    fn plain(z: &Tensor, scale: f64, cap: Option<f64>, target: Target) -> Result<[Tensor; 2]> {
        let z = Var::from_tensor(&z.to_dtype(DType::F64)?)?;
        let logits = |z: &Tensor| {
            let z = (z * scale)?;
            match cap {
                Some(cap) => (z / cap)?.tanh()? * cap,
                None => Ok(z),
            }
        };
        let log_p = |z: &Tensor| candle_nn::ops::log_softmax(&logits(z)?, D::Minus1);
        let log = log_p(z.as_tensor())?;
        let values = match target {
            Target::Token(tokens) => log.gather(&tokens.unsqueeze(1)?, 1)?.squeeze(1)?,
            Target::Absent(weights, _) => {
                let comes = log.exp()?.broadcast_mul(&weights.to_dtype(DType::F64)?)?.sum(1)?;
                comes.affine(-1.0, 1.0)?.log()?
            }
            Target::Reference(theirs) => {
                let theirs = log_p(&theirs.to_dtype(DType::F64)?)?;
                (theirs.exp()? * (&theirs - &log)?)?.sum(1)?
            }
        };
        let found = values.sum_all()?.backward()?;
        Ok([values, found.get(z.as_tensor()).expect("slopes").clone()])
    }

    #[test]
    fn values_and_slopes_are_candles() {
        proves("head.cu", || {
            for (rows, vocabulary) in [(1, 2), (3, 5), (17, 33), (2, 300), (3, 1300)] {
                let shape = [rows, vocabulary];
                // A naive exponential is infinite at 89.
                let z = (some(&shape, 1) * 60.0).expect("products");
                let theirs = (some(&shape, 2) * 60.0).expect("products");
                let tokens: Vec<u32> = (0..rows).map(|i| (i * 7 % vocabulary) as u32).collect();
                let tokens = Tensor::from_vec(tokens, rows, &Device::Cpu).expect("tokens");
                // Half of what may come: so the rest is no rounding.
                let weights = some(&[vocabulary], 3).affine(0.1, 0.3).expect("weights");
                let targets = [
                    Target::Token(&tokens),
                    Target::Absent(&weights, LEAST as f32),
                    Target::Reference(&theirs),
                ];
                for (index, target) in targets.into_iter().enumerate() {
                    for (scale, cap) in [(1.0, None), (0.5, Some(30.0))] {
                        let what = format!("{index} of {shape:?}, cap {cap:?}");
                        let found = both_ways(|| {
                            let cap = cap.map(|cap: f64| cap as f32);
                            let (alone, _) = values(&z, scale as f32, cap, target, false)?;
                            let (values, slopes) = values(&z, scale as f32, cap, target, true)?;
                            Ok(vec![alone, values, slopes.expect("asked for")])
                        });
                        let [value, slope] = plain(&z, scale, cap, target).expect("plain");
                        close(&what, &found[0], &value, 3e-5);
                        close(&what, &found[1], &value, 3e-5);
                        close(&what, &found[2], &slope, 3e-5);
                    }
                }
            }
        });
    }

    /// A word that is all but certain to come: the least probability is taken.
    #[test]
    fn a_logarithm_has_a_floor() {
        let z = Tensor::new(&[[30f32, 0.0, 0.0]], &Device::Cpu).expect("products");
        let weights = Tensor::new(&[1f32, 0.0, 0.0], &Device::Cpu).expect("weights");
        let target = Target::Absent(&weights, LEAST as f32);
        let (value, _) = values(&z, 1.0, None, target, true).expect("launched");
        let wanted = Tensor::new(&[LEAST.ln()], &Device::Cpu).expect("wanted");
        close("floor", &value, &wanted, 1e-6);
    }

    #[test]
    fn a_token_beyond_the_vocabulary_has_no_value() {
        let tokens = Tensor::new(&[3u32], &Device::Cpu).expect("tokens");
        let (value, _) =
            values(&some(&[1, 3], 1), 1.0, None, Target::Token(&tokens), true).expect("launched");
        assert!(value.to_vec1::<f32>().expect("values")[0].is_nan());
    }
}
