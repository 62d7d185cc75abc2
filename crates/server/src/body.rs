//! Request bodies: JSON of a bounded size, each field known, errors that name the field.

use axum::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::PartialSchema;
use utoipa::openapi::{RefOr, Schema};

use crate::error::ApiError;

/// Deepest nesting of a body; serde_json's own bound is 128.
type Object = Map<String, Value>;

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
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|e| {
        let path = e.path().to_string();
        let why = e.into_inner().to_string();
        // serde says "unknown field `x`, expected one of ...", with the list of all.
        if let Some(rest) = why.strip_prefix("unknown field `")
            && let Some((name, _)) = rest.split_once('`')
        {
            let path = if path == "." { name.to_owned() } else { path };
            return ApiError::field(&path, format!("{path}: this field is not known here; leave it out"))
                .code("unknown_field");
        }
        if path == "." { ApiError::bad(why) } else { ApiError::field(&path, format!("{path}: {why}")) }
    })
}

/// Takes the fields that `T`'s schema lists out of a body, so that two types share it; the rest stays.
pub(crate) fn take<T: DeserializeOwned + PartialSchema>(body: &mut Object) -> Result<T, ApiError> {
    let RefOr::T(Schema::Object(schema)) = T::schema() else {
        return Err(ApiError::server("a schema of the server is no object"));
    };
    let names: Vec<String> =
        body.keys().filter(|k| schema.properties.contains_key(k.as_str())).cloned().collect();
    let taken = names.into_iter().filter_map(|k| body.remove_entry(&k)).collect();
    typed(taken)
}
