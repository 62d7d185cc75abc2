//! `quarrel template`: a conversation as the model sees it, and nothing else on stdout.

use anyhow::{Context, Result, bail};
use quarrel_text::chat_template::DateTime;
use quarrel_text::{ChatTemplate, RenderInput};

use quarrel_runtime::prompt as chat_format;

use crate::args::Template;
use crate::render::Out;
use crate::{input, models};

pub(crate) fn run(args: Template) -> Result<()> {
    let messages = input::json_list(&args.messages, "messages")?;
    let tools = args.tools.as_deref().map(|f| input::json_list(f, "tools")).transpose()?;
    let now = match &args.now {
        None => chat_format::now()?,
        Some(iso) => DateTime::parse(iso)
            .with_context(|| format!("--now {iso}: not a date and time such as 2025-01-31T12:00:00"))?,
    };
    let (mut bos, mut eos) = (args.bos, args.eos);
    let template = match &args.file {
        Some(file) => ChatTemplate::new(&input::text_file(file)?)?,
        None => {
            let local = models::resolve(&args.model)?;
            let source = quarrel_runtime::open_source(&local.path)?;
            let tokenizer = quarrel_runtime::tokenizer_of(&source)?;
            bos = bos.or_else(|| chat_format::token_text(&tokenizer, tokenizer.bos()));
            eos = eos.or_else(|| chat_format::token_text(&tokenizer, tokenizer.eos()));
            match quarrel_runtime::template_of(&source)? {
                Some(template) => template,
                None => bail!("{} has no chat template; give one with --file", local.name),
            }
        }
    };
    let text = template.render(&RenderInput {
        messages: Some(&messages),
        tools: tools.as_ref(),
        add_generation_prompt: !args.no_generation_prompt,
        bos: bos.as_deref(),
        eos: eos.as_deref(),
        now: Some(now),
        extra: None,
    })?;
    Ok(Out::new().text(&text)?)
}
