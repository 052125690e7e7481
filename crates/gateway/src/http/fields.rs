//! A JSON object's fields, taken one by one, so that a wrong one is named in the error.

use std::{fmt::Display, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a request. `null` counts as absent; unknown fields are ignored, because clients differ.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::body(
                "the request's body is JSON, but not an object",
            )),
            Err(error) => Err(ApiError::body(format!(
                "the request's body is not valid JSON: {error}"
            ))),
        }
    }

    /// The value of a field.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &'static str) -> Result<Option<&str>, ApiError> {
        self.convert(name, "a string", Value::as_str)
    }

    pub(crate) fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        Ok(self
            .convert(name, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    pub(crate) fn seed(&self, name: &'static str) -> Result<Option<u64>, ApiError> {
        let bits = |value: &Value| {
            value
                .as_u64()
                .or_else(|| value.as_i64().map(i64::cast_unsigned))
        };
        self.convert(name, "an integer", bits)
    }

    pub(crate) fn integer(
        &self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let value = self.convert(name, "an integer", Value::as_u64)?;
        value.map(|value| in_range(name, value, range)).transpose()
    }

    pub(crate) fn number(
        &self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let value = self.convert(name, "a number", Value::as_f64)?;
        value.map(|value| in_range(name, value, range)).transpose()
    }

    fn convert<'a, T>(
        &'a self,
        name: &'static str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(ApiError::invalid(
                    name,
                    format!("'{name}' must be {expected}"),
                )),
            },
        }
    }
}

fn in_range<T: PartialOrd + Display>(
    name: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, ApiError> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = range.into_inner();
    Err(ApiError::invalid(
        name,
        format!("'{name}' is {value}; it must be {low} to {high}"),
    ))
}
