//! Numbers that a model gives must be *finite*: a text or a figure made of others would mean
//! nothing.

use anyhow::Result;

use crate::base::error::Error;

/// Errors (a failed check) if one of these numbers is not finite.
pub fn finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::Check(format!(
            "{what} are not finite ({value}): its weights are broken, or so large \
             that its sums overflow"
        ))
        .into()),
        None => Ok(()),
    }
}

/// An error about numbers that are not finite, with the name of the model; another as it is.
pub fn of_model(name: &str) -> impl Fn(anyhow::Error) -> anyhow::Error {
    move |error| match error.downcast_ref::<Error>() {
        Some(Error::Check(_)) => error.context(name.to_owned()),
        _ => error,
    }
}
