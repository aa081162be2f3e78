//! The build script: with the feature `cuda` it builds the fused kernels for the GPU, else nothing.

use std::error::Error;

const FOLDER: &str = "src/model/fused/kernels";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={FOLDER}");
    #[cfg(feature = "cuda")]
    fused_kernels()?;
    Ok(())
}

/// One PTX file of all kernels (`fused.ptx`), for the architecture that candle's are built for.
#[cfg(feature = "cuda")]
fn fused_kernels() -> Result<(), Box<dyn Error>> {
    // In a folder cudaforge watches the headers alone, and here a source includes others.
    let files: Result<Vec<_>, _> =
        std::fs::read_dir(FOLDER)?.map(|file| file.map(|file| file.path())).collect();
    let builder = cudaforge::KernelBuilder::new()
        .source_files([format!("{FOLDER}/fused.cu")])
        .watch(files?)
        .arg("-std=c++17")
        .arg("-O3");
    Ok(builder.build_ptx().map(drop)?)
}
