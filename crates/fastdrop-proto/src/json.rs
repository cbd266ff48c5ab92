//! Strict JSON: what RFC 8259 leaves to taste is refused here.

use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The largest integer that is taken: 2^53, above which a reader that uses doubles would see
/// another.
pub const INTEGER_MAX: u64 = 1 << 53;

/// Why a text was refused.
#[derive(Debug, thiserror::Error)]
#[error("bad JSON: {0}")]
pub struct JsonError(#[from] serde_json::Error);

/// Parses one value, refusing doubled keys at any level, integers beyond 2^53, and anything after
/// the value.
///
/// Depth is bounded at 128 by the parser; floats where `T` has an integer are refused by `T`.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    let Strict(value) = serde_json::from_slice(text)?;
    Ok(serde_json::from_value(value)?)
}

/// Writes a value whose types always can be JSON.
pub fn write<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        if v > INTEGER_MAX {
            return Err(E::custom("an integer beyond 2^53"));
        }
        Ok(v.into())
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        if v.unsigned_abs() > INTEGER_MAX {
            return Err(E::custom("an integer beyond 2^53"));
        }
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let Strict(value) = map.next_value()?;
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} twice")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct One {
        n: u64,
    }

    #[test]
    fn an_unknown_key_is_ignored() {
        assert_eq!(parse::<One>(br#"{"n": 7, "later": {"a": [1, null, true, 1.5]}}"#).unwrap(), One { n: 7 });
    }

    #[test]
    fn cases_14_to_17_are_refused() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let deep_in_object = format!("{{\"n\":1,\"x\":{deep}}}");
        for text in [
            deep_in_object.as_bytes(),
            br#"{"n":1,"n":1}"#,
            br#"{"n":1,"x":{"y":1,"y":2}}"#,
            br#"{"n":1e400}"#,
            br#"{"n":-1}"#,
            br#"{"n":9007199254740993}"#,
            br#"{"n":1.0}"#,
            br#"{"n":1e2}"#,
            br#"{"n":1} x"#,
            b"{\"n\":1,\"x\":\"\xff\"}",
            br#"{"n":1,"x":"\ud800"}"#,
            b"",
            b"7",
        ] {
            parse::<One>(text).expect_err(&String::from_utf8_lossy(text));
        }
    }
}
