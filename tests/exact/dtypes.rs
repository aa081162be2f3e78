//! Number types: what is rounded is near, and what is saved comes back to the bit.

use irepair::checkpoint;
use irepair::model::precision::Precision;
use irepair::model::weights::Kernels;
use irepair::slice::sensitivity;
use irepair::tokens::LossOn;

use crate::support::files::{Folder, bytes};
use crate::support::golden::{CHECKPOINTS, Golden, KERNELS};
use crate::support::tensors::close;

/// Operands rounded to bf16. On the scale of its rounding (2⁻⁸), NLL and sensitivities are those of
/// f32, the same block is the most sensitive, and rounding does happen.
#[test]
fn mixed_precision_is_near_f32() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let batch = golden.batch(LossOn::Response).rejected;
        for kernels in KERNELS {
            if kernels == Kernels::Cpu && Precision::Bf16.unavailable().is_some() {
                continue;
            }
            let what = format!("{name} {kernels:?}");
            let mut weights = golden.weights(kernels);
            let (exact, nll) =
                sensitivity::sensitivity(&golden.model, &weights, &batch).expect("f32");
            weights.set_precision(Precision::Bf16);
            let (mixed, mixed_nll) =
                sensitivity::sensitivity(&golden.model, &weights, &batch).expect("bf16");
            close(mixed_nll, nll, 0.01, &what);
            assert_ne!(mixed, exact, "{what}: nothing was rounded");
            for (mixed, exact) in mixed.iter().zip(&exact) {
                close(*mixed, *exact, 0.05, &what);
            }
            let largest = |of: &[f64]| sensitivity::pick(of, |a, b| a > b).expect("a block");
            assert_eq!(largest(&mixed), largest(&exact), "{what}");
        }
    }
}

/// Open → save unchanged: every file equal, whatever its layout and dtype.
#[test]
fn saving_unchanged_gives_equal_bytes() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let weights = golden.weights(KERNELS[0]);
        let out = Folder::new();
        checkpoint::write(&golden.checkpoint, &weights, out.root()).expect("writes");
        for file in &golden.checkpoint.files {
            let (a, b) = (golden.checkpoint.dir.join(file), out.path(file));
            assert_eq!(bytes(a), bytes(b), "{name}/{file}");
        }
        // Written again from the loaded values: f32, f16 and bf16 come back to the bit.
        let mut weights = weights;
        for spec in golden.model.specs() {
            weights.touch(&spec.name).expect("touch");
        }
        checkpoint::write(&golden.checkpoint, &weights, out.root()).expect("writes");
        let written = checkpoint::Checkpoint::open(out.root(), name, None).expect("opens");
        let changes = checkpoint::compare(&golden.checkpoint, &written).expect("compares");
        assert_eq!(changes, [], "{name}");
    }
}
