//! The optimizers are those of torch.

use candle_core::{Device, Tensor};
use irepair::model::weights::{Place, TensorSpec, Weights, Who};
use irepair::step::optim::{Optimizer, OptimizerKind};
use serde_json::Value;

use crate::support::golden::{json, number, numbers};
use crate::support::tensors::{all_close, flat};

/// RMSProp and AdamW against torch.optim, with steps in which the parameter has no gradient.
#[test]
fn optimizers_equal_torch() {
    let expected = json("optim.json");
    for (kind, key) in [(OptimizerKind::Rmsprop, "rmsprop"), (OptimizerKind::Adamw, "adamw")] {
        let values = |value: &Value| numbers(value).iter().map(|x| *x as f32).collect::<Vec<f32>>();
        let vector =
            |value: &Value| Tensor::from_vec(values(value), 5, &Device::Cpu).expect("tensor");
        let spec = TensorSpec::outside("p", &[5], Place::Head);
        let mut weights =
            Weights::new(vec![spec], [("p".to_owned(), vector(&expected["initial"]))].into())
                .expect("weights");
        let mut optimizer = Optimizer::new(kind);
        let lr = number(&expected["lr"]);
        let gradients = expected["gradients"].as_array().expect("gradients");
        let after = expected[key]["after"].as_array().expect("after");
        for (gradient, after) in gradients.iter().zip(after) {
            if !gradient.is_null() {
                let gradients = [("p".to_owned(), vector(gradient))].into();
                optimizer.step(&mut weights, &gradients, lr, 1.0).expect("step");
            }
            let got = flat(&weights.tensor(Who::Patient, "p").expect("p"));
            all_close(&got, &values(after), 1e-6, key);
        }
    }
}
