//! Text in and out: tokenizers, chat templates, UTF-8 streaming, stop strings.
