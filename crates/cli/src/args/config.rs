//! The flags of `quarrel config`, and the one that names its file everywhere else.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Where settings come from beside flags.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    /// Read settings from this file [default: $QUARREL_CONFIG, or quarrel/config.toml in the folder for configuration]
    #[arg(long, value_name = "FILE", global = true, help_heading = "General")]
    pub(crate) config: Option<PathBuf>,
}

/// The configuration.
#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the settings of a command and where each comes from; secrets are hidden
    Show {
        /// The command
        #[arg(value_name = "COMMAND", value_enum, default_value_t = ConfigOf::Serve)]
        of: ConfigOf,
        /// Print one JSON object: command, file, settings
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
    /// Write a file with every key and its default, each behind a #; one that exists is left alone
    Init {
        /// Where; - is stdout [default: quarrel/config.toml in the folder for configuration]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// A command with settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigOf {
    Serve,
    Run,
    Chat,
    Keys,
}
