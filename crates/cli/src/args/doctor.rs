//! The flags of `doctor`.

use clap::Args;

use super::{EngineArgs, ModelArgs};

/// Look for what is wrong with a model.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The model, in any form that --model takes
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Look at the files only: load no weights
    #[arg(long)]
    pub(crate) no_run: bool,
    /// Print one JSON object: model, wrong, findings (what, grade, said)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
