//! Activation functions. `curve` is the number of one in `kernels/activation.cu`.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Address, Grid, launch};
use super::{blank, is, size};

#[derive(Clone, Copy)]
#[repr(C)]
struct Forward {
    x: Address,
    y: Address,
    count: u64,
    curve: u32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Backward {
    x: Address,
    g: Address,
    gx: Address,
    count: u64,
    curve: u32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct GatedForward {
    gate: Address,
    up: Address,
    y: Address,
    count: u64,
    columns: u32,
    stride: u32,
    curve: u32,
    unused: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct GatedBackward {
    gate: Address,
    up: Address,
    g: Address,
    g_gate: Address,
    g_up: Address,
    count: u64,
    columns: u32,
    stride: u32,
    curve: u32,
    unused: u32,
}

/// Errors on a number that no function has.
fn known(curve: u32) -> Result<()> {
    if curve > 3 {
        bail!("no activation function has the number {curve}");
    }
    Ok(())
}

/// f(x), in the shape of x.
pub fn forward(curve: u32, x: &Tensor) -> Result<Tensor> {
    known(curve)?;
    is("activation", x, x.dims(), x.device())?;
    let y = blank(x.shape(), DType::F32, x.device())?;
    let count = x.elem_count();
    let grid = Grid::of_values(count);
    // SAFETY: y is new, and as large as x.
    unsafe {
        launch("activation_forward", x.device(), grid, [Some(x)], [Some(&y)], |[x], [y]| {
            Forward { x, y, count: count as u64, curve, unused: 0 }
        })?;
    }
    Ok(y)
}

/// The gradient of x by that of f(x).
pub fn backward(curve: u32, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (device, count) = (x.device(), x.elem_count());
    known(curve)?;
    for read in [x, g] {
        is("activation", read, x.dims(), device)?;
    }
    let gx = blank(x.shape(), DType::F32, device)?;
    let (grid, reads) = (Grid::of_values(count), [x, g].map(Some));
    // SAFETY: gx is new, and as large as x and g.
    unsafe {
        launch("activation_backward", device, grid, reads, [Some(&gx)], |[x, g], [gx]| Backward {
            x,
            g,
            gx,
            count: count as u64,
            curve,
            unused: 0,
        })?;
    }
    Ok(gx)
}

/// Gates and ups, (n,inner) each.
#[derive(Clone, Copy)]
pub enum Gated<'a> {
    Apart(&'a Tensor, &'a Tensor),
    /// In one tensor (n,2·inner), gates first.
    Fused(&'a Tensor),
}

/// How gates and ups lie.
struct Lie {
    rows: usize,
    inner: usize,
    stride: usize,
}

impl<'a> Gated<'a> {
    fn lie(self) -> Result<Lie> {
        let (rows, stride) = self.gate().dims2()?;
        for x in [Some(self.gate()), self.up()].into_iter().flatten() {
            is("gated activation", x, &[rows, stride], self.gate().device())?;
        }
        let inner = match self {
            Self::Apart(..) => stride,
            Self::Fused(_) if stride.is_multiple_of(2) => stride / 2,
            Self::Fused(_) => bail!("gated activation: gates and ups of {stride} values"),
        };
        Ok(Lie { rows, inner, stride })
    }

    fn gate(self) -> &'a Tensor {
        let (Self::Apart(gate, _) | Self::Fused(gate)) = self;
        gate
    }

    /// The ups where they are apart.
    fn up(self) -> Option<&'a Tensor> {
        match self {
            Self::Apart(_, up) => Some(up),
            Self::Fused(_) => None,
        }
    }
}

impl Lie {
    /// Ups are in a tensor of their own, or lie after the gates.
    fn up(&self, gate: Address, up: Address) -> Address {
        if up == Address::NONE { gate.after(self.inner) } else { up }
    }
}

/// f(gate) ∘ up: (n,inner).
pub fn gated_forward(curve: u32, gated: Gated) -> Result<Tensor> {
    known(curve)?;
    let (lie, device) = (gated.lie()?, gated.gate().device());
    let y = blank((lie.rows, lie.inner), DType::F32, device)?;
    let (columns, stride) = (size(lie.inner)?, size(lie.stride)?);
    let grid = Grid::of_values(lie.rows * lie.inner);
    let reads = [Some(gated.gate()), gated.up()];
    // SAFETY: the shapes are checked, and y is new.
    unsafe {
        launch("gated_forward", device, grid, reads, [Some(&y)], |[gate, up], [y]| GatedForward {
            gate,
            up: lie.up(gate, up),
            y,
            count: (lie.rows * lie.inner) as u64,
            columns,
            stride,
            curve,
            unused: 0,
        })?;
    }
    Ok(y)
}

/// The gradients of gates and ups by that of f(gate) ∘ up (n,inner): one each where they are
/// apart, else one of both side by side.
pub fn gated_backward(curve: u32, gated: Gated, g: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    known(curve)?;
    let (lie, device) = (gated.lie()?, gated.gate().device());
    is("gated activation", g, &[lie.rows, lie.inner], device)?;
    let like_gate = || blank(gated.gate().shape(), DType::F32, device);
    let (g_gate, g_up) = (like_gate()?, gated.up().map(|_| like_gate()).transpose()?);
    let (columns, stride) = (size(lie.inner)?, size(lie.stride)?);
    let grid = Grid::of_values(lie.rows * lie.inner);
    let (reads, writes) =
        ([Some(gated.gate()), gated.up(), Some(g)], [Some(&g_gate), g_up.as_ref()]);
    // SAFETY: the shapes are checked, and what is written is new.
    unsafe {
        launch("gated_backward", device, grid, reads, writes, |[gate, up, g], [g_gate, g_up]| {
            GatedBackward {
                gate,
                up: lie.up(gate, up),
                g,
                g_gate,
                g_up: lie.up(g_gate, g_up),
                count: (lie.rows * lie.inner) as u64,
                columns,
                stride,
                curve,
                unused: 0,
            }
        })?;
    }
    Ok((g_gate, g_up))
}

#[cfg(all(test, unix))]
mod tests {
    use candle_core::Var;

    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    type Plain = fn(&Tensor) -> Result<Tensor>;

    /// candle's own functions, by their numbers.
    const PLAIN: [Plain; 4] = [Tensor::gelu, Tensor::gelu_erf, Tensor::relu, Tensor::silu];

    /// Values from −60 to 60, most of them small; no 0, where relu has no slope.
    fn inputs(shape: &[usize], seed: u64) -> Tensor {
        let x = some(shape, seed);
        x.powf(3.0).and_then(|cube| (cube * 4.0)? + &x).and_then(|x| (x * 1.8)? + 1e-3).expect("x")
    }

    /// What candle's backward pass gives, in f64.
    fn gradients(
        of: &[&Tensor],
        g: &Tensor,
        plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Vec<Tensor> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64).expect("wide");
        let of: Vec<Var> = of.iter().map(|t| Var::from_tensor(&wide(t)).expect("var")).collect();
        let inputs: Vec<Tensor> = of.iter().map(|v| v.as_tensor().clone()).collect();
        let y = plain(&inputs).expect("plain");
        let loss = (&y * wide(g)).and_then(|y| y.sum_all()).expect("loss");
        let found = loss.backward().expect("gradients");
        let gradient = |v: &Var| found.get(v.as_tensor()).expect("gradient").clone();
        std::iter::once(y).chain(of.iter().map(gradient)).collect()
    }

    #[test]
    fn activations_are_candles() {
        proves("activation.cu", || {
            for (curve, plain) in (0..).zip(PLAIN) {
                for shape in [[1, 1], [3, 5], [17, 33], [2, 300]] {
                    let (x, g) = (inputs(&shape, 1), some(&shape, 2));
                    let found =
                        both_ways(|| Ok(vec![forward(curve, &x)?, backward(curve, &x, &g)?]));
                    let wanted = gradients(&[&x], &g, |x| plain(&x[0]));
                    for (found, wanted) in found.iter().zip(&wanted) {
                        close(&format!("{curve} of {shape:?}"), found, wanted, 1e-5);
                    }
                    gated(curve, plain, &shape);
                }
            }
        });
    }

    fn gated(curve: u32, plain: Plain, shape: &[usize; 2]) {
        let (gate, up, g) = (inputs(shape, 3), some(shape, 4), some(shape, 5));
        let both = Tensor::cat(&[&gate, &up], 1).expect("both");
        let found = both_ways(|| {
            let apart = Gated::Apart(&gate, &up);
            let (g_gate, g_up) = gated_backward(curve, apart, &g)?;
            let fused = gated_backward(curve, Gated::Fused(&both), &g)?.0;
            let ys = [apart, Gated::Fused(&both)].map(|gated| gated_forward(curve, gated));
            let [y, y_fused] = ys;
            Ok(vec![y?, g_gate, g_up.expect("apart"), y_fused?, fused])
        });
        let mut wanted = gradients(&[&gate, &up], &g, |x| plain(&x[0])? * &x[1]);
        wanted.push(wanted[0].clone());
        wanted.push(Tensor::cat(&wanted[1..3], 1).expect("both"));
        for (found, wanted) in found.iter().zip(&wanted) {
            close(&format!("gated {curve} of {shape:?}"), found, wanted, 1e-5);
        }
    }
}
