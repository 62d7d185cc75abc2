//! Request bodies: JSON of a bounded size, each field known, errors that name the field.
#![allow(unused_qualifications, reason = "in what utoipa makes of a generic list")]

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::error::ApiError;

pub(crate) type Object = Map<String, Value>;

/// A body's object.
pub(crate) fn object(bytes: &Bytes) -> Result<Object, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::bad("the request has no body; a JSON object is needed"));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(o)) => Ok(o),
        Ok(_) => Err(ApiError::bad("the body must be a JSON object")),
        Err(e) => Err(ApiError::bad(format!("the body is not valid JSON: {e}"))),
    }
}

/// A whole body of one type, which denies unknown fields.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    typed(object(bytes)?)
}

/// An object as a type; the error names the field.
pub(crate) fn typed<T: DeserializeOwned>(object: Object) -> Result<T, ApiError> {
    at("", Value::Object(object))
}

/// A part of a body as a type; `place` is where it stands in the body.
pub(crate) fn at<T: DeserializeOwned>(place: &str, value: Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let inner = e.path().to_string();
        let mut path = match (place, inner.as_str()) {
            (place, ".") => place.to_owned(),
            ("", inner) => inner.to_owned(),
            (place, inner) => format!("{place}.{inner}"),
        };
        let why = e.into_inner().to_string();
        // serde says "unknown field `x`, expected one of ...", with the list of all.
        if let Some(rest) = why.strip_prefix("unknown field `")
            && let Some((name, _)) = rest.split_once('`')
        {
            // Inside of a tagged union the path ends before the field.
            if path.rsplit('.').next() != Some(name) {
                path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            }
            return ApiError::field(&path, format!("{path}: this field is not known here; leave it out"))
                .code("unknown_field");
        }
        if let Some(name) = why.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            return ApiError::field(&path, format!("{path}: this field is needed"));
        }
        let why = plainly(&why);
        if path.is_empty() { ApiError::bad(why) } else { ApiError::field(&path, format!("{path}: {why}")) }
    })
}

/// What serde says of a wrong type, in JSON's words instead of Rust's.
fn plainly(why: &str) -> String {
    let Some((got, wanted)) = why.strip_prefix("invalid type: ").and_then(|w| w.rsplit_once(", expected "))
    else {
        return why.to_owned();
    };
    let wanted = match wanted {
        "a sequence" => "a list",
        "a map" => "an object",
        "a string" => "a text",
        "a boolean" => "true or false",
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    let kinds = [
        ("string ", "a text"),
        ("integer ", "a whole number"),
        ("floating point ", "a number"),
        ("boolean ", "true or false"),
        ("sequence", "a list"),
        ("map", "an object"),
        ("null", "null"),
    ];
    let kind = kinds.into_iter().find(|(word, _)| got.starts_with(word)).map_or(got, |(_, kind)| kind);
    // Numbers are shown; a text may be long, and its sender knows it.
    let number = got.split_once('`').map(|(_, n)| format!(" ({})", n.trim_end_matches('`')));
    format!("{wanted} is needed, this is {kind}{}", number.unwrap_or_default())
}

/// A text, or a list of parts.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum TextOr<T> {
    Text(String),
    List(Vec<T>),
}

/// By hand, because serde forgets what was wrong with the part of a union without tags.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.into()))
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(TextOr::List)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A body of two types that share it: the first has the fields of its schema, the second the rest. `aliases` are other names
/// of fields, and theirs.
pub(crate) fn parts<A: DeserializeOwned + PartialSchema, B: DeserializeOwned>(
    mut object: Object,
    aliases: &[(&str, &str)],
) -> Result<(A, B), ApiError> {
    let first = take(&mut object, aliases)?;
    Ok((first, typed(object)?))
}

/// Takes the fields that `T`'s schema lists out of a body; the rest stays.
fn take<T: DeserializeOwned + PartialSchema>(
    body: &mut Object,
    aliases: &[(&str, &str)],
) -> Result<T, ApiError> {
    for (alias, name) in aliases {
        if let Some(value) = body.remove(*alias)
            && body.insert((*name).into(), value).is_some()
        {
            return Err(ApiError::field(
                *alias,
                format!("{alias} and {name} are the same; give one of them"),
            ));
        }
    }
    let RefOr::T(Schema::Object(schema)) = T::schema() else {
        return Err(ApiError::server("a schema of the server is no object"));
    };
    let names: Vec<String> =
        body.keys().filter(|k| schema.properties.contains_key(k.as_str())).cloned().collect();
    let taken = names.into_iter().filter_map(|k| body.remove_entry(&k)).collect();
    typed(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Body {
        n: u32,
        list: Vec<f32>,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only read")]
    struct Inner {
        on: bool,
        name: String,
    }

    #[test]
    fn errors_name_the_field_and_say_what_is_needed() {
        for (body, param, message) in [
            (r#"{"list": []}"#, Some("n"), "n: this field is needed"),
            (
                r#"{"n": 1, "list": [], "inner": {"on": true}}"#,
                Some("inner.name"),
                "inner.name: this field is needed",
            ),
            (r#"{"n": "x", "list": []}"#, Some("n"), "n: a whole number from 0 on is needed, this is a text"),
            (
                r#"{"n": 1.5, "list": []}"#,
                Some("n"),
                "n: a whole number from 0 on is needed, this is a number (1.5)",
            ),
            (r#"{"n": 1, "list": {}}"#, Some("list"), "list: a list is needed, this is an object"),
            (r#"{"n": 1, "list": [null]}"#, Some("list[0]"), "list[0]: a number is needed, this is null"),
            (
                r#"{"n": 1, "list": [], "inner": []}"#,
                Some("inner"),
                "inner: invalid length 0, expected struct Inner with 2 elements",
            ),
            (
                r#"{"n": 1, "list": [], "inner": 3}"#,
                Some("inner"),
                "inner: an object is needed, this is a whole number (3)",
            ),
            (
                r#"{"n": 1, "list": [], "more": 3}"#,
                Some("more"),
                "more: this field is not known here; leave it out",
            ),
            ("[]", None, "the body must be a JSON object"),
        ] {
            let error = parse::<Body>(&Bytes::from_static(body.as_bytes())).unwrap_err();
            assert_eq!((error.param.as_deref(), &*error.message), (param, message), "{body}");
        }
    }
}
