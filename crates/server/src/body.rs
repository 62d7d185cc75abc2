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
        if path.is_empty() { ApiError::bad(why) } else { ApiError::field(&path, format!("{path}: {why}")) }
    })
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
