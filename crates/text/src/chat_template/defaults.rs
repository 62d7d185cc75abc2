//! Templates of families, for instruction models whose file has none. A family is known by the tokens of its turns, which
//! are in the vocabulary of its base models too: whether a model was trained to converse must be known otherwise.

use super::ChatTemplate;
use crate::{Result, Tokenizer};

/// The form of conversation of a family.
#[derive(Debug, Clone, Copy)]
pub struct DefaultTemplate {
    /// The family.
    pub name: &'static str,
    /// Tokens that its vocabulary has, all of them.
    pub tokens: &'static [&'static str],
    /// The token that ends a turn.
    pub end: &'static str,
    source: &'static str,
}

/// What most share: each turn in the form given, and the beginning of the model's.
macro_rules! turns {
    ($before:literal, $turn:literal, $answer:literal) => {
        concat!(
            $before,
            "{%- for m in messages -%}",
            $turn,
            "{%- endfor -%}{%- if add_generation_prompt -%}{{- '",
            $answer,
            "' -}}{%- endif -%}"
        )
    };
}

/// The forms; the first whose tokens are all there is taken.
pub const DEFAULTS: &[DefaultTemplate] = &[
    DefaultTemplate {
        name: "Llama 3",
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        end: "<|eot_id|>",
        source: turns!(
            "{{- bos_token -}}",
            "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}",
            "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
        ),
    },
    DefaultTemplate {
        name: "Gemma",
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        end: "<end_of_turn>",
        // What the system says comes before the first question.
        source: turns!(
            "{{- bos_token -}}{%- set ns = namespace(system='') -%}",
            "{%- if m.role == 'system' -%}{%- set ns.system = m.content | trim + '\\n\\n' -%}{%- else -%}\
             {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' -}}\
             {{- ('' if m.role == 'assistant' else ns.system) + m.content | trim + '<end_of_turn>\\n' -}}\
             {%- if m.role != 'assistant' -%}{%- set ns.system = '' -%}{%- endif -%}{%- endif -%}",
            "<start_of_turn>model\\n"
        ),
    },
    DefaultTemplate {
        name: "Command-R",
        tokens: &["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"],
        end: "<|END_OF_TURN_TOKEN|>",
        source: turns!(
            "{{- bos_token -}}",
            "{{- '<|START_OF_TURN_TOKEN|>' + ('<|SYSTEM_TOKEN|>' if m.role == 'system' else '<|CHATBOT_TOKEN|>' \
             if m.role == 'assistant' else '<|USER_TOKEN|>') + m.content + '<|END_OF_TURN_TOKEN|>' -}}",
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
    },
    DefaultTemplate {
        name: "Granite",
        tokens: &["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"],
        end: "<|end_of_text|>",
        source: turns!(
            "",
            "{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\\n' -}}",
            "<|start_of_role|>assistant<|end_of_role|>"
        ),
    },
    DefaultTemplate {
        name: "EXAONE",
        tokens: &["[|user|]", "[|assistant|]", "[|endofturn|]"],
        end: "[|endofturn|]",
        source: turns!(
            "",
            "{{- '[|' + m.role + '|]' + m.content + ('\\n' if m.role == 'user' else '[|endofturn|]\\n') -}}",
            "[|assistant|]"
        ),
    },
    DefaultTemplate {
        name: "GLM-4",
        tokens: &["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"],
        end: "<|user|>",
        source: turns!(
            "{{- '[gMASK]<sop>' -}}",
            "{{- '<|' + m.role + '|>\\n' + m.content -}}",
            "<|assistant|>\\n"
        ),
    },
    DefaultTemplate {
        name: "Phi-3",
        tokens: &["<|user|>", "<|assistant|>", "<|end|>"],
        end: "<|end|>",
        source: turns!("", "{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' -}}", "<|assistant|>\\n"),
    },
    DefaultTemplate {
        name: "Mistral",
        tokens: &["[INST]", "[/INST]"],
        end: "</s>",
        source: concat!(
            "{{- bos_token -}}{%- set ns = namespace(system='') -%}{%- for m in messages -%}",
            "{%- if m.role == 'system' -%}{%- set ns.system = m.content + '\\n\\n' -%}",
            "{%- elif m.role == 'assistant' -%}{{- m.content + '</s>' -}}",
            "{%- else -%}{{- '[INST]' + ns.system + m.content + '[/INST]' -}}{%- set ns.system = '' -%}",
            "{%- endif -%}{%- endfor -%}"
        ),
    },
    DefaultTemplate {
        name: "LFM 2",
        tokens: &["<|startoftext|>", "<|im_start|>", "<|im_end|>"],
        end: "<|im_end|>",
        source: turns!(
            "{{- bos_token -}}",
            "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}",
            "<|im_start|>assistant\\n"
        ),
    },
    DefaultTemplate {
        name: "ChatML",
        tokens: &["<|im_start|>", "<|im_end|>"],
        end: "<|im_end|>",
        source: super::CHATML,
    },
];

impl DefaultTemplate {
    /// The form that belongs to a vocabulary.
    pub fn of(tokenizer: &Tokenizer) -> Option<&'static DefaultTemplate> {
        let has = |t: &&str| tokenizer.token_id(t).is_some_and(|id| tokenizer.is_special(id));
        DEFAULTS.iter().find(|d| d.tokens.iter().all(has))
    }

    /// The template.
    ///
    /// # Errors
    /// None in practice: the sources are built in.
    pub fn template(&self) -> Result<ChatTemplate> {
        ChatTemplate::new(self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RenderInput;

    #[test]
    fn each_form_has_its_turns() {
        let messages = serde_json::json!([
            {"role": "system", "content": "S"},
            {"role": "user", "content": "A"},
            {"role": "assistant", "content": "B"},
            {"role": "user", "content": "C"},
        ]);
        let want = [
            "<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA\
             <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>user\
             <|end_header_id|>\n\nC<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<bos><start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n<start_of_turn>user\nC\
             <end_of_turn>\n<start_of_turn>model\n",
            "<bos><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>A\
             <|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>B<|END_OF_TURN_TOKEN|>\
             <|START_OF_TURN_TOKEN|><|USER_TOKEN|>C<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>A\
             <|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>B<|end_of_text|>\n<|start_of_role|>user\
             <|end_of_role|>C<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
            "[|system|]S[|endofturn|]\n[|user|]A\n[|assistant|]B[|endofturn|]\n[|user|]C\n[|assistant|]",
            "[gMASK]<sop><|system|>\nS<|user|>\nA<|assistant|>\nB<|user|>\nC<|assistant|>\n",
            "<|system|>\nS<|end|>\n<|user|>\nA<|end|>\n<|assistant|>\nB<|end|>\n<|user|>\nC<|end|>\n<|assistant|>\n",
            "<bos>[INST]S\n\nA[/INST]B</s>[INST]C[/INST]",
            "<bos><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n\
             <|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n\
             <|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
        ];
        assert_eq!(DEFAULTS.len(), want.len());
        for (d, want) in DEFAULTS.iter().zip(want) {
            let input = RenderInput {
                messages: Some(&messages),
                add_generation_prompt: true,
                bos: Some("<bos>"),
                eos: Some("<eos>"),
                ..RenderInput::default()
            };
            let text = d.template().unwrap().render(&input).unwrap();
            assert_eq!(text, want, "{}", d.name);
            assert!(text.contains(d.end), "{}", d.name);
        }
    }
}
