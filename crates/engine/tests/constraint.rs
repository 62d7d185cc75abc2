//! Constraints: every token that is drawn is one that they allow, however it comes about, and they see each drawn token once,
//! in order, whatever is guessed, batched, preempted or forked beside it. One that fails fails its own request.

mod common;

use common::{Answer, VOCAB, collect, load_salted, program, prompt, run, start};
use quarrel_engine::{
    Beams, Constraint, ConstraintBox, DraftConfig, DraftModel, DynamicTemperature, Engine, EngineConfig,
    Error, Event, FinishReason, Handle, Request, Sampling, Speculate,
};
use quarrel_ir::reference::Reference;
use std::collections::HashMap;
use std::sync::Arc;

/// Temperatures by entropy.
const RANGE: Option<DynamicTemperature> = Some(DynamicTemperature { min: 0.2, max: 1.5, exponent: 1.0 });

/// What a rule says of the next token after those of the answer; `None` forbids nothing.
type Rule = Arc<dyn Fn(&[u32]) -> Result<Option<Vec<u32>>, String> + Send + Sync>;

/// A constraint that remembers the answer and asks a function of it.
#[derive(Clone)]
struct Toy {
    answer: Vec<u32>,
    rule: Rule,
}

impl Constraint for Toy {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<bool, String> {
        assert!(allowed.len() == VOCAB.div_ceil(32) as usize && allowed.iter().all(|w| *w == 0));
        let Some(ids) = (self.rule)(&self.answer)? else { return Ok(false) };
        ids.iter().for_each(|id| allowed[*id as usize / 32] |= 1 << (id % 32));
        Ok(true)
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if (self.rule)(&self.answer)?.is_some_and(|ids| !ids.contains(&id)) {
            return Err(format!("{id} after {:?}", self.answer));
        }
        self.answer.push(id);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn toy(
    rule: impl Fn(&[u32]) -> Result<Option<Vec<u32>>, String> + Send + Sync + 'static,
) -> Option<ConstraintBox> {
    Some(ConstraintBox::new(Toy { answer: Vec::new(), rule: Arc::new(rule) }))
}

/// A few tokens by the answer's length and last token, so that answers repeat themselves; now and then anything goes.
fn pattern(answer: &[u32]) -> Option<Vec<u32>> {
    let (n, last) = (answer.len() as u32, answer.last().copied().unwrap_or(1));
    match n % 11 {
        10 => None,
        4 => Some(vec![last % 3 + 40]),
        _ => Some((0..7).filter(|t| (t + n) % 3 != 0 && *t != last).map(|t| t * 9 % VOCAB).collect()),
    }
}

fn obeys(answer: &[u32]) -> bool {
    (0..answer.len()).all(|i| pattern(&answer[..i]).is_none_or(|ids| ids.contains(&answer[i])))
}

fn samplings() -> Vec<Sampling> {
    let sampled = Sampling { temperature: 0.8, seed: Some(5), ..Sampling::default() };
    vec![
        Sampling::greedy(),
        sampled.clone(),
        Sampling { top_p: 0.8, top_k: 3, min_p: 0.05, temperature: 1.3, ..sampled.clone() },
        Sampling {
            repetition_penalty: 1.2,
            frequency_penalty: 0.4,
            presence_penalty: -0.5,
            penalty_window: Some(9),
            logit_bias: vec![(40, 3.0), (9, f32::NEG_INFINITY), (0, -1.0)],
            ..sampled.clone()
        },
        Sampling { dynamic_temperature: RANGE, ..sampled.clone() },
        Sampling { dry_multiplier: 0.5, typical_p: 0.8, xtc_probability: 0.5, ..sampled.clone() },
        Sampling { mirostat: 2, mirostat_tau: 3.0, ..sampled.clone() },
        Sampling { adaptive: 1.0, top_n_sigma: 1.0, edt_theta: 0.3, ..sampled },
    ]
}

fn request(prompt: Vec<u32>, sampling: &Sampling) -> Request {
    Request {
        sampling: sampling.clone(),
        max_tokens: Some(60),
        logprobs: Some(2),
        constraint: toy(|answer| Ok(pattern(answer))),
        ..Request::new(prompt)
    }
}

fn same(got: &Answer, want: &Answer) {
    assert_eq!((&got.tokens, &got.logprobs, got.reason), (&want.tokens, &want.logprobs, want.reason));
}

fn config(context: usize) -> EngineConfig {
    // Every guess is taken, as if rows cost nothing.
    EngineConfig { row_cost_permille: Some(0), ..EngineConfig::new(context) }
}

#[test]
fn every_token_is_allowed_and_without_the_constraint_it_would_not_be() {
    let handle = start(config(160));
    for (i, sampling) in samplings().iter().enumerate() {
        let got = run(&handle, request(prompt(20, i as u32), sampling));
        assert_eq!(got.tokens.len(), 60);
        assert!(obeys(&got.tokens), "{sampling:?}: {:?}", got.tokens);
        let free = run(&handle, Request { constraint: None, ..request(prompt(20, i as u32), sampling) });
        assert!(!obeys(&free.tokens));
    }
}

#[test]
fn one_that_forbids_nothing_changes_nothing_and_log_probabilities_are_the_models() {
    let handle = start(config(160));
    for sampling in samplings() {
        let plain = Request { constraint: None, ..request(prompt(20, 3), &sampling) };
        let all = Request { constraint: toy(|_| Ok(Some((0..VOCAB).collect()))), ..plain.clone() };
        let none = Request { constraint: toy(|_| Ok(None)), ..plain.clone() };
        let want = run(&handle, plain);
        same(&run(&handle, all), &want);
        same(&run(&handle, none), &want);
    }
    let forced = prompt(30, 8);
    let text = forced.clone();
    let constraint = toy(move |answer| Ok(Some(vec![text[answer.len()]])));
    let sampling = Sampling::default();
    let got = run(&handle, Request { constraint, max_tokens: Some(30), ..request(prompt(20, 3), &sampling) });
    assert_eq!(got.tokens, forced);
    let scores = handle.score([prompt(20, 3), forced].concat(), 20).unwrap();
    for (got, want) in got.logprobs.iter().zip(&scores) {
        assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
    }
}

#[test]
fn guesses_change_nothing() {
    let draft = |salt| {
        let (mut device, program) = (Reference::default(), program());
        let weights = load_salted(&mut device, &program, salt);
        DraftModel::new(Box::new(device), program, &weights, DraftConfig::new(160)).unwrap()
    };
    let with_draft = |salt| {
        let (mut device, program) = (Reference::default(), program());
        let weights = load_salted(&mut device, &program, 0);
        Engine::start_with_draft(Box::new(device), program, &weights, config(160), Some(draft(salt))).unwrap()
    };
    let plain = start(config(160));
    for (speculate, salt) in [
        (Speculate::Lookup, None),
        (Speculate::Ngram, None),
        (Speculate::Auto, None),
        (Speculate::Draft, Some(0)),
        (Speculate::Draft, Some(3)),
    ] {
        let handle = salt.map_or_else(|| start(config(160)), with_draft);
        for sampling in samplings() {
            for salt in [1, 2, 1] {
                let request = request(prompt(24, salt), &sampling);
                let want = run(&plain, request.clone());
                same(&run(&handle, Request { speculate, ..request }), &want);
                assert!(obeys(&want.tokens));
            }
        }
        let stats = handle.stats();
        assert!(
            stats.accepted_tokens > 10 && (stats.drafted_tokens > stats.accepted_tokens || salt == Some(0)),
            "{speculate:?}: {stats:?}"
        );
    }
}

#[test]
fn company_preemption_and_forks_change_nothing() {
    let tight = EngineConfig {
        kv_blocks: Some(9),
        step_tokens: 24,
        step_outputs: 12,
        max_running: 4,
        max_queue: 32,
        ..config(128)
    };
    let (handle, plain) = (start(tight), start(config(128)));
    let mut requests = Vec::new();
    for i in 0..12u32 {
        let sampling = &samplings()[i as usize % 5];
        let speculate = if i % 2 == 0 { Speculate::Lookup } else { Speculate::Off };
        requests.push(Request { speculate, ..request(prompt(9 + 7 * (i as usize % 5), i % 4), sampling) });
    }
    // Whether they meet, and so whether one is sent back, is up to the system: again until it happened.
    let plainly = |r: &Request| run(&plain, Request { speculate: Speculate::Off, ..r.clone() });
    let want: Vec<Answer> = requests.iter().map(plainly).collect();
    let mut rounds = 0;
    while handle.stats().preemptions == 0 {
        rounds += 1;
        assert!(rounds <= 200, "never were so many there at once that one was sent back");
        let streams: Vec<_> = requests.iter().map(|r| handle.submit(r.clone()).unwrap()).collect();
        for (stream, want) in streams.into_iter().zip(&want) {
            same(&collect(stream).unwrap(), want);
        }
    }
    // Each of several answers has a state of its own.
    let sampling = Sampling { seed: Some(40), ..samplings()[1].clone() };
    let many = Request { n: 4, max_tokens: Some(40), ..request(prompt(20, 5), &sampling) };
    let got = choices(&handle, many.clone());
    assert_eq!(got.len(), 4);
    for (choice, tokens) in got {
        let seed = Some(40 + u64::from(choice));
        let alone = Request { n: 1, sampling: Sampling { seed, ..sampling.clone() }, ..many.clone() };
        assert_eq!(tokens, run(&plain, alone).tokens);
        assert!(obeys(&tokens));
    }
    // The request that was sent is as it was.
    assert_eq!(choices(&plain, many.clone()), choices(&plain, many));
}

/// The tokens of every answer.
fn choices(handle: &Handle, request: Request) -> HashMap<u32, Vec<u32>> {
    let mut out: HashMap<u32, Vec<u32>> = HashMap::new();
    for event in handle.submit(request).unwrap() {
        match event {
            Event::Token { choice, id, .. } => out.entry(choice).or_default().push(id),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    out
}

#[test]
fn beams_obey_and_end_where_only_the_end_is_allowed() {
    const END: u32 = 60;
    // Six tokens by the pattern, then the end.
    let rule = |answer: &[u32]| Ok(if answer.len() < 6 { pattern(answer) } else { Some(vec![END]) });
    let request = || Request {
        beams: Some(Beams { width: 4, length_penalty: 0.0 }),
        n: 3,
        max_tokens: Some(20),
        stop_ids: vec![END],
        constraint: toy(rule),
        ..Request::new(prompt(20, 2))
    };
    let roomy = start(EngineConfig { kv_blocks: Some(64), ..config(96) });
    let got = choices(&roomy, request());
    assert_eq!(got.len(), 3);
    assert!(got.values().all(|tokens| tokens.len() == 6 && obeys(tokens)), "{got:?}");
    assert!(got[&0] != got[&1] && got[&1] != got[&2]);
    assert_eq!(choices(&start(EngineConfig { kv_blocks: Some(16), ..config(96) }), request()), got);
    // The best first by the model's own log-probabilities, and no worse than taking the best token each time.
    let score = |answer: &[u32]| -> f64 {
        roomy.score([prompt(20, 2), answer.to_vec()].concat(), 20).unwrap().iter().sum()
    };
    assert!(score(&got[&0]) > score(&got[&1]) - 1e-5 && score(&got[&1]) > score(&got[&2]) - 1e-5);
    let greedy = Request { beams: None, n: 1, sampling: Sampling::greedy(), ..request() };
    assert!(score(&got[&0]) >= score(&run(&roomy, greedy).tokens) - 1e-5);
}

#[test]
fn an_answer_ends_by_the_constraint() {
    let rule = |answer: &[u32]| Ok(Some(if answer.len() < 5 { vec![7, 8] } else { vec![60] }));
    let request = Request { stop_ids: vec![60], constraint: toy(rule), ..Request::new(prompt(12, 1)) };
    let got = run(&start(config(96)), request);
    assert_eq!((got.tokens.len(), got.reason), (5, FinishReason::Stop));
}

#[test]
fn one_that_fails_fails_alone_and_says_where() {
    let failing: [(&str, Option<ConstraintBox>); 5] = [
        ("no luck", toy(|a| if a.len() < 4 { Ok(None) } else { Err("no luck".into()) })),
        ("no token at all", toy(|a| Ok(if a.len() < 4 { None } else { Some(Vec::new()) }))),
        ("all of the 2 tokens", toy(|a| Ok(if a.len() < 4 { None } else { Some(vec![3, 4]) }))),
        ("panicked", toy(|a| if a.len() < 4 { Ok(None) } else { panic!("a test") })),
        ("after", Some(ConstraintBox::new(Refusing(0)))),
    ];
    let handle = start(EngineConfig { kv_blocks: Some(64), ..config(128) });
    let forbidden = Sampling {
        logit_bias: vec![(3, f32::NEG_INFINITY), (4, f32::NEG_INFINITY)],
        seed: Some(1),
        ..Sampling::default()
    };
    for (what, constraint) in failing {
        for (beams, n) in [(None, 1), (None, 3), (Some(Beams { width: 3, length_penalty: 1.0 }), 1)] {
            let good = handle.submit(request(prompt(20, 1), &samplings()[1])).unwrap();
            let constraint = constraint.clone();
            let bad = Request { constraint, beams, n, ..request(prompt(10, 2), &forbidden) };
            let error = match handle.submit(bad).unwrap().last() {
                Some(Event::Failed(error)) => error,
                other => panic!("{what}: {other:?}"),
            };
            let Error::Constraint { step, why } = &error else { panic!("{what}: {error}") };
            assert!(
                why.contains(what) && *step == 14 && error.to_string().contains("step 14"),
                "{what}: {error}"
            );
            same(&collect(good).unwrap(), &run(&handle, request(prompt(20, 1), &samplings()[1])));
        }
    }
    assert_eq!(handle.stats().blocks_used, 0);
}

/// Allows everything and takes four tokens.
struct Refusing(usize);

impl Constraint for Refusing {
    fn mask(&mut self, _: &mut [u32]) -> Result<bool, String> {
        Ok(false)
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        self.0 += 1;
        if self.0 > 4 { Err("it comes after the end".into()) } else { Ok(()) }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Refusing(self.0))
    }
}

#[test]
fn requests_compare_and_print_with_their_constraint() {
    let a = Request { constraint: toy(|_| Ok(None)), ..Request::new(vec![1]) };
    let b = Request { constraint: toy(|_| Ok(None)), ..Request::new(vec![1]) };
    assert!(a == a.clone() && a != b);
    assert!(format!("{a:?}").contains("Constraint(new)"));
}
