//! The settings that a study compares. The first is what the others' costs are compared with.

use quarrel_engine::{Beams, BestBy, Confidence, Guide, Request, Sampling};

/// One way to choose tokens.
#[derive(Clone, Copy)]
pub struct Method {
    /// Its name in tables and flags.
    pub name: &'static str,
    /// Its settings in words.
    pub about: &'static str,
    /// Puts them into a request that samples with temperature 1 and no truncation.
    pub set: fn(&mut Request),
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

impl Method {
    /// All of them.
    pub const ALL: &'static [Method] = &[
        Method { name: "plain", about: "temperature 1, nothing cut off", set: |_| {} },
        Method {
            name: "greedy",
            about: "always the best token",
            set: |r| sampling(r, |s| s.temperature = 0.0),
        },
        Method {
            name: "temperature",
            about: "temperature 0.7",
            set: |r| sampling(r, |s| s.temperature = 0.7),
        },
        Method { name: "top-k", about: "top-k 40", set: |r| sampling(r, |s| s.top_k = 40) },
        Method { name: "top-p", about: "top-p 0.9", set: |r| sampling(r, |s| s.top_p = 0.9) },
        Method { name: "min-p", about: "min-p 0.1", set: |r| sampling(r, |s| s.min_p = 0.1) },
        Method {
            name: "hot min-p",
            about: "temperature 1.5, min-p 0.1",
            set: |r| sampling(r, |s| (s.temperature, s.min_p) = (1.5, 0.1)),
        },
        Method {
            name: "repetition",
            about: "temperature 0.7, repetition penalty 1.1 over 256 tokens",
            set: |r| {
                sampling(r, |s| {
                    (s.temperature, s.repetition_penalty, s.penalty_window) = (0.7, 1.1, Some(256));
                });
            },
        },
        Method { name: "typical", about: "typical-p 0.9", set: |r| sampling(r, |s| s.typical_p = 0.9) },
        Method { name: "top-n-sigma", about: "top-n-sigma 1", set: |r| sampling(r, |s| s.top_n_sigma = 1.0) },
        Method {
            name: "xtc",
            about: "XTC with probability 0.5 and threshold 0.1, min-p 0.05",
            set: |r| sampling(r, |s| (s.xtc_probability, s.xtc_threshold, s.min_p) = (0.5, 0.1, 0.05)),
        },
        Method {
            name: "mirostat",
            about: "Mirostat 2, tau 4",
            set: |r| sampling(r, |s| (s.mirostat, s.mirostat_tau) = (2, 4.0)),
        },
        Method {
            name: "dry",
            about: "temperature 0.7, DRY 0.8",
            set: |r| sampling(r, |s| (s.temperature, s.dry_multiplier) = (0.7, 0.8)),
        },
        Method { name: "edt", about: "EDT with theta 0.1", set: |r| sampling(r, |s| s.edt_theta = 0.1) },
        Method {
            name: "adaptive",
            about: "top-p 0.9, steered by the answer's own repeats and confidence (1)",
            set: |r| sampling(r, |s| (s.top_p, s.adaptive) = (0.9, 1.0)),
        },
        Method {
            name: "confidence",
            about: "top-p 0.9, segments with a confidence outside 4.5 to 8 nats drawn up to 3 times more",
            set: |r| {
                sampling(r, |s| s.top_p = 0.9);
                let band = Confidence { tries: 3, min: 4.5, max: 8.0, ..Confidence::default() };
                r.guide = Some(Box::new(Guide { confidence: Some(band), ..Guide::default() }));
            },
        },
        Method {
            name: "self-certainty",
            about: "the most self-certain of 4, top-p 0.9",
            set: |r| {
                sampling(r, |s| s.top_p = 0.9);
                (r.best_of, r.best_of_by) = (Some(4 * r.n), BestBy::SelfCertainty);
            },
        },
        Method { name: "entropy", about: "the --quality preset", set: |r| r.sampling = Sampling::quality() },
        Method {
            name: "best-of",
            about: "the likeliest of 4, top-p 0.9",
            set: |r| {
                sampling(r, |s| s.top_p = 0.9);
                r.best_of = Some(4 * r.n);
            },
        },
        Method {
            name: "beams",
            about: "beam search of width 4 for each answer asked for",
            set: |r| {
                r.sampling = Sampling::greedy();
                r.beams = Some(Beams { width: (4 * r.n).max(2), length_penalty: 1.0 });
            },
        },
    ];

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
        let mut seen: Vec<Request> = Vec::new();
        for m in Method::ALL {
            let mut r = Request { n: 3, ..Request::new(vec![1]) };
            (m.set)(&mut r);
            r.sampling.check().unwrap();
            assert!(!seen.contains(&r), "{} is another method", m.name);
            seen.push(r);
            assert_eq!(Method::find(m.name).map(|m| m.about), Some(m.about));
        }
    }
}
