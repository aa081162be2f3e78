//! Mixed precision on a processor that has no fast products for it.

use irepair::model::precision::Precision;

use crate::support::command::{irepair, ok, stderr};
use crate::support::files::Folder;
use crate::support::repaired::{demo, files, record, steps};
use crate::support::tensors::close;

/// As on a processor without AVX512-BF16, `--dtype bf16` is f32, to the byte, and says so. The fast
/// path is near.
#[test]
fn bf16_without_fast_products_is_f32() {
    let folder = Folder::new();
    let run = |name: &str, dtype: &str, plain: bool| {
        let out = folder.path(name);
        let mut line =
            demo(&out).and("--method irepair --learning-rate 1e-4").with("--dtype", dtype);
        if plain {
            line = line.env("IREPAIR_PLAIN_PRODUCTS", "1");
        }
        let output = line.run();
        let said = ok(&output);
        let warnings = stderr(&output).matches("f32 is used").count();
        let said = (warnings, said.matches("in f32").count());
        (files(&out), record(&out), steps(&out), said)
    };
    let (bytes, fallback, _, said) = run("fallback", "bf16", true);
    assert_eq!((fallback.dtype, fallback.settings.dtype), (Precision::F32, Precision::Bf16));
    assert_eq!(said, (1, 1));
    let (same, asked, plain, said) = run("plain", "f32", true);
    assert_eq!((asked.dtype, said), (Precision::F32, (0, 0)));
    assert_eq!(bytes, same);
    let (_, fast, steps, _) = run("fast", "bf16", false);
    assert_eq!(fast.dtype == Precision::Bf16, Precision::Bf16.unavailable().is_none());
    for (fast, plain) in steps.iter().zip(&plain) {
        assert_eq!(fast.block, plain.block);
        close(fast.loss, plain.loss, 0.01, "bf16 and f32");
    }
    let rounded =
        steps.iter().zip(&plain).any(|(fast, plain)| (fast.loss / plain.loss - 1.0).abs() > 1e-5);
    assert_eq!(rounded, fast.dtype == Precision::Bf16, "rounding shows");
    // Measuring what is not there would mislead.
    irepair("bench --dtype bf16").env("IREPAIR_PLAIN_PRODUCTS", "1").fails(3, &[]);
    irepair("bench --dtype tf32 --device cpu").fails(3, &["--dtype tf32", "NVIDIA"]);
    let tf32 = demo(folder.path("tf32")).and("--method irepair --dtype tf32");
    tf32.fails(3, &["--dtype tf32", "NVIDIA"]);
    let doctor = irepair("doctor").env("IREPAIR_PLAIN_PRODUCTS", "1").ok();
    assert!(doctor.contains("f32 is used"));
}
