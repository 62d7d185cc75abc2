//! The settings that a study compares. The first is what the others' costs are compared with.

use quarrel_engine::{
    Amateur, Beams, BestBy, Confidence, ContrastiveSearch, Dola, DynamicTemperature, Request, Sampling,
};
use quarrel_runtime::{CoherenceOptions, GuideOptions};

/// One way to choose tokens.
#[derive(Clone, Copy)]
pub struct Method {
    /// Its name in tables and flags.
    pub name: &'static str,
    /// Its settings in words.
    pub about: &'static str,
    /// Puts them into a request that samples with temperature 1 and no truncation, and is not guided.
    pub set: fn(&mut Request, &mut GuideOptions, &Setting),
}

/// What a method may use of the study.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The prompt's form with nothing in it, in tokens.
    pub blank: Vec<u32>,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Changes the sampling of a request.
fn sampling(r: &mut Request, change: impl FnOnce(&mut Sampling)) {
    change(&mut r.sampling);
}

/// Nearly greedy where the model is sure, free where it is not.
fn by_entropy(s: &mut Sampling) {
    s.top_p = 0.9;
    s.dynamic_temperature = Some(DynamicTemperature { min: 0.2, max: 1.5, exponent: 1.0 });
}

impl Method {
    /// All of them.
    pub const ALL: &'static [Method] = &[
        Method { name: "plain", about: "temperature 1, nothing cut off", set: |_, _, _| {} },
        Method {
            name: "greedy",
            about: "always the best token",
            set: |r, _, _| sampling(r, |s| s.temperature = 0.0),
        },
        Method {
            name: "temperature",
            about: "temperature 0.7",
            set: |r, _, _| sampling(r, |s| s.temperature = 0.7),
        },
        Method { name: "top-k", about: "top-k 40", set: |r, _, _| sampling(r, |s| s.top_k = 40) },
        Method { name: "top-p", about: "top-p 0.9", set: |r, _, _| sampling(r, |s| s.top_p = 0.9) },
        Method { name: "min-p", about: "min-p 0.1", set: |r, _, _| sampling(r, |s| s.min_p = 0.1) },
        Method {
            name: "hot min-p",
            about: "temperature 1.5, min-p 0.1",
            set: |r, _, _| sampling(r, |s| (s.temperature, s.min_p) = (1.5, 0.1)),
        },
        Method {
            name: "repetition",
            about: "temperature 0.7, repetition penalty 1.1 over 256 tokens",
            set: |r, _, _| {
                sampling(r, |s| {
                    (s.temperature, s.repetition_penalty, s.penalty_window) = (0.7, 1.1, Some(256));
                });
            },
        },
        Method { name: "typical", about: "typical-p 0.9", set: |r, _, _| sampling(r, |s| s.typical_p = 0.9) },
        Method {
            name: "top-n-sigma",
            about: "top-n-sigma 1",
            set: |r, _, _| sampling(r, |s| s.top_n_sigma = 1.0),
        },
        Method {
            name: "xtc",
            about: "XTC with probability 0.5 and threshold 0.1, min-p 0.05",
            set: |r, _, _| sampling(r, |s| (s.xtc_probability, s.xtc_threshold, s.min_p) = (0.5, 0.1, 0.05)),
        },
        Method {
            name: "mirostat",
            about: "Mirostat 2, tau 4",
            set: |r, _, _| sampling(r, |s| (s.mirostat, s.mirostat_tau) = (2, 4.0)),
        },
        Method {
            name: "dry",
            about: "temperature 0.7, DRY 0.8",
            set: |r, _, _| sampling(r, |s| (s.temperature, s.dry_multiplier) = (0.7, 0.8)),
        },
        Method {
            name: "min-p dry",
            about: "min-p 0.1, DRY 0.8: the --quality preset",
            set: |r, _, _| r.sampling = Sampling::quality(),
        },
        Method {
            name: "sigma dry",
            about: "top-n-sigma 1, DRY 0.8",
            set: |r, _, _| sampling(r, |s| (s.top_n_sigma, s.dry_multiplier) = (1.0, 0.8)),
        },
        Method {
            name: "entropy dry",
            about: "temperature 0.2 to 1.5 by entropy, top-p 0.9, DRY 0.8",
            set: |r, _, _| {
                sampling(r, by_entropy);
                r.sampling.dry_multiplier = 0.8;
            },
        },
        Method {
            name: "edt",
            about: "EDT with theta 0.1",
            set: |r, _, _| sampling(r, |s| s.edt_theta = 0.1),
        },
        Method {
            name: "adaptive",
            about: "top-p 0.9, steered by the answer's own repeats and confidence (1)",
            set: |r, _, _| sampling(r, |s| (s.top_p, s.adaptive) = (0.9, 1.0)),
        },
        Method {
            name: "confidence",
            about: "top-p 0.9, segments with a confidence outside 4.5 to 8 nats drawn up to 3 times more",
            set: |r, g, _| {
                sampling(r, |s| s.top_p = 0.9);
                g.confidence = Some(Confidence { tries: 3, min: 4.5, max: 8.0, ..Confidence::default() });
            },
        },
        Method {
            name: "self-certainty",
            about: "the most self-certain of 4, top-p 0.9",
            set: |r, _, _| {
                sampling(r, |s| s.top_p = 0.9);
                (r.best_of, r.best_of_by) = (Some(4 * r.n), BestBy::SelfCertainty);
            },
        },
        Method {
            name: "entropy",
            about: "temperature 0.2 to 1.5 by entropy, top-p 0.9",
            set: |r, _, _| sampling(r, by_entropy),
        },
        Method {
            name: "best-of",
            about: "the likeliest of 4, top-p 0.9",
            set: |r, _, _| {
                sampling(r, |s| s.top_p = 0.9);
                r.best_of = Some(4 * r.n);
            },
        },
        Method {
            name: "coherence",
            about: "top-p 0.9, sentences with a PMI below 1 nat drawn up to 3 times more",
            set: |r, g, _| {
                sampling(r, |s| s.top_p = 0.9);
                g.coherence =
                    Some(CoherenceOptions { tries: 3, min: Some(1.0), ..CoherenceOptions::default() });
            },
        },
        Method {
            name: "meaning",
            about: "top-p 0.9, sentences drawn up to 3 times more whose embedding has a cosine below 0.3 with the sentence \
                    before, or below 0.2 with the prompt",
            set: |r, g, _| {
                sampling(r, |s| s.top_p = 0.9);
                let (adjacent, prompt) = (Some(0.3), Some(0.2));
                g.coherence =
                    Some(CoherenceOptions { tries: 3, adjacent, prompt, ..CoherenceOptions::default() });
            },
        },
        Method {
            name: "cfg",
            about: "top-p 0.9, away from the answer to an empty prompt (classifier-free guidance, scale 1.5)",
            set: |r, g, setting| {
                sampling(r, |s| s.top_p = 0.9);
                g.negative = Some((setting.blank.clone(), 1.5));
            },
        },
        Method {
            name: "contrast",
            about: "away from the model's first half (contrastive decoding, alpha 0.1, beta 0.5)",
            set: |_, g, _| g.amateur = Some(Amateur::default()),
        },
        Method {
            name: "dola",
            about: "away from the farthest of the second half's layers (DoLa, alpha 0.1, beta 1), repetition penalty 1.2",
            set: |r, g, _| {
                sampling(r, |s| s.repetition_penalty = 1.2);
                g.dola = Some(Dola::default());
            },
        },
        Method {
            name: "contrastive",
            about: "contrastive search, alpha 0.6, k 4: one answer to each prompt",
            set: |_, g, _| g.search = Some(ContrastiveSearch::default()),
        },
        Method {
            name: "beams",
            about: "beam search of width 4 for each answer asked for",
            set: |r, _, _| {
                r.sampling = Sampling::greedy();
                r.beams = Some(Beams { width: (4 * r.n).max(2), length_penalty: 1.0 });
            },
        },
    ];

    /// What it asks of guidance.
    fn guidance(&self) -> GuideOptions {
        let (mut request, mut options) = (Request::new(vec![0]), GuideOptions::default());
        (self.set)(&mut request, &mut options, &Setting { blank: vec![0] });
        options
    }

    /// Whether it needs logits after some of the model's layers, which take time in each step.
    pub fn needs_exits(&self) -> bool {
        self.guidance().dola.is_some()
    }

    /// Whether it is a search that finds one answer only.
    pub fn searches(&self) -> bool {
        self.guidance().search.is_some()
    }

    /// Whether it needs an embedding model.
    pub fn needs_embedder(&self) -> bool {
        self.guidance().coherence.is_some_and(|c| c.compares())
    }

    /// The method of a name.
    pub fn find(name: &str) -> Option<&'static Method> {
        Self::ALL.iter().find(|m| m.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_legal_and_its_own() {
        let mut seen: Vec<String> = Vec::new();
        for m in Method::ALL {
            let (mut r, mut g) = (Request { n: 3, ..Request::new(vec![1]) }, GuideOptions::default());
            (m.set)(&mut r, &mut g, &Setting { blank: vec![2] });
            r.sampling.check().unwrap();
            let guided = format!("{:?} {:?} {:?} {:?}", g.coherence, g.confidence, g.negative, g.amateur);
            let all = format!("{r:?} {guided} {:?} {:?}", g.dola, g.search);
            assert!(!seen.contains(&all), "{} is another method", m.name);
            seen.push(all);
            assert_eq!(Method::find(m.name).map(|m| m.about), Some(m.about));
        }
        let named = |needs: fn(&Method) -> bool| -> Vec<&str> {
            Method::ALL.iter().filter(|m| needs(m)).map(|m| m.name).collect()
        };
        assert_eq!(named(Method::needs_exits), ["dola"]);
        assert_eq!(named(Method::needs_embedder), ["meaning"]);
    }
}
