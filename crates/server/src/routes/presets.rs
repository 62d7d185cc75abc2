//! `GET /v1/presets`: named settings, which a request chooses by `preset`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::app::App;

/// A preset.
#[derive(Serialize, ToSchema)]
pub(crate) struct PresetObject {
    name: String,
    description: String,
    /// The fields that it sets, where a request does not.
    #[schema(value_type = Object)]
    settings: Value,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(crate) struct PresetList {
    object: &'static str,
    data: Vec<PresetObject>,
}

/// The named settings.
#[utoipa::path(get, path = "/v1/presets", tag = "Presets", responses((status = 200, body = PresetList)))]
pub(crate) async fn list(State(app): State<App>) -> Json<PresetList> {
    let data = app.presets.list().map(|p| {
        let mut settings = json!(p);
        if let Some(o) = settings.as_object_mut() {
            o.remove("name");
            o.remove("description");
            for value in o.values_mut() {
                // 0.05, not 0.05000000074505806.
                if let Some(v) = value.as_f64().filter(|_| value.is_f64()) {
                    *value = json!((v * 1e6).round() / 1e6);
                }
            }
        }
        PresetObject { name: p.name.clone(), description: p.description.clone(), settings }
    });
    Json(PresetList { object: "list", data: data.collect() })
}
