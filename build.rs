//! With the feature `cuda` the fused kernels are built for the GPU, else nothing is.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    fused_kernels();
}

/// One PTX file of all kernels (`fused.ptx`), for the architecture that candle's are built for.
#[cfg(feature = "cuda")]
fn fused_kernels() {
    const SOURCES: &str = "src/model/fused/kernels";
    println!("cargo:rerun-if-changed={SOURCES}");
    let files = std::fs::read_dir(SOURCES).expect("the kernels' folder");
    let mut watched: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    watched.sort();
    let builder = cudaforge::KernelBuilder::new()
        .source_files([format!("{SOURCES}/fused.cu")])
        .watch(watched)
        .arg("-std=c++17")
        .arg("-O3");
    if let Err(e) = builder.build_ptx() {
        panic!("the fused kernels can't be built: {e}");
    }
}
