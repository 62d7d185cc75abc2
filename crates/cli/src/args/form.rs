//! The flags that force the form of an answer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use quarrel_text::GrammarSpec;

use crate::input;

/// What the answer must be, token by token.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct FormArgs {
    /// The answer is JSON that this schema accepts: the schema itself, or a file (- is stdin); without SCHEMA any JSON object
    #[arg(long, value_name = "SCHEMA", num_args = 0..=1, require_equals = true, default_missing_value = "", visible_alias = "json-schema-file", help_heading = "Form of the answer")]
    json_schema: Option<String>,
    /// The whole answer matches this regular expression
    #[arg(long, value_name = "REGEX", conflicts_with = "json_schema", help_heading = "Form of the answer")]
    regex: Option<String>,
    /// The answer is of the grammar in this file, in llguidance's variant of Lark
    #[arg(long, value_name = "FILE", visible_alias = "grammar-file", conflicts_with_all = ["json_schema", "regex"], help_heading = "Form of the answer")]
    grammar: Option<PathBuf>,
}

impl FormArgs {
    /// The form, if one is asked for.
    pub(crate) fn spec(&self) -> Result<Option<GrammarSpec>> {
        if let Some(file) = &self.grammar {
            return Ok(Some(GrammarSpec::Lark(input::text_file(file)?)));
        }
        match (self.json_schema.as_deref(), &self.regex) {
            (Some(""), _) => Ok(Some(GrammarSpec::JsonObject)),
            (Some(given), _) => {
                let inline = given.trim_start().starts_with('{');
                let text = if inline { given.into() } else { input::text_file(Path::new(given))? };
                let at = if inline { "--json-schema" } else { given };
                let schema = serde_json::from_str(&text).with_context(|| format!("{at} is no JSON"))?;
                Ok(Some(GrammarSpec::JsonSchema(schema)))
            }
            (None, Some(regex)) => Ok(Some(GrammarSpec::Regex(regex.clone()))),
            (None, None) => Ok(None),
        }
    }
}
