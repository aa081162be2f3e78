//! Tensors: their values, random ones, and how near two are.

use candle_core::{Device, Tensor};
use irepair::base::random::{Purpose, Stream};
use irepair::model::Model;
use irepair::model::weights::{TensorSpec, Weights, Who};

/// All values in their order.
pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("flat").to_vec1().expect("values")
}

/// A loss or another number.
pub fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_scalar::<f32>().expect("a scalar").into()
}

/// The values of every tensor of a model, in the order of its specs.
pub fn all(model: &Model, weights: &Weights, who: Who) -> Vec<Vec<f32>> {
    model.specs().iter().map(|s| flat(&weights.tensor(who, &s.name).expect("tensor"))).collect()
}

/// Normal random values for each tensor of a model, times `scale`: always the same.
pub fn random(model: &Model, scale: f32) -> Vec<(TensorSpec, Tensor)> {
    let mut stream = Stream::new(5, Purpose::Bench, 0, 0);
    let tensor = |spec: TensorSpec| {
        let count = spec.shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| stream.normal() as f32 * scale).collect();
        let tensor = Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu);
        (spec, tensor.expect("tensor"))
    };
    model.specs().into_iter().map(tensor).collect()
}

/// A model's weights of random values.
pub fn random_weights(model: &Model) -> Weights {
    let tensors = random(model, 0.3).into_iter().map(|(spec, tensor)| (spec.name, tensor));
    Weights::new(model.specs(), tensors.collect()).expect("weights")
}

/// Two numbers agree, relative to the expected one.
#[track_caller]
pub fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let error = (got - want).abs() / want.abs().max(1e-30);
    assert!(
        error <= tolerance,
        "{what}: got {got}, expected {want} (relative {error:.2e} > {tolerance:.0e})"
    );
}

/// Two tensors agree, relative to the largest value of the expected one.
#[track_caller]
pub fn all_close(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: sizes");
    let largest = want.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
    let worst = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs())).fold(0f64, f64::max);
    let finite = got.iter().all(|x| x.is_finite());
    assert!(finite && worst <= tolerance * largest, "{what}: off by {worst:.3e} of {largest:.3e}");
}
