//! The planner: what each case gives, and what holds for every conversation.

use proptest::prelude::*;
use quarrel_store::context::*;
use quarrel_store::{Error, Role};

use Role::{Assistant as A, Tool as T, User as U};

fn policy(budget: u32) -> Policy {
    Policy { summary_tokens_max: 20, retrieved_tokens_max: 20, ..Policy::for_budget(budget) }
}

const IDS: [&str; 40] = [
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18",
    "19", "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31", "32", "33", "34", "35",
    "36", "37", "38", "39",
];

fn entries(list: &[(Role, u32)]) -> Vec<Entry<'static>> {
    list.iter().zip(IDS).map(|((role, tokens), id)| Entry { id, role: *role, tokens: *tokens }).collect()
}

/// `n` turns of a question and an answer, 10 tokens each message.
fn chat(n: usize) -> Vec<Entry<'static>> {
    entries(&[(U, 10), (A, 10)].repeat(n))
}

/// The parts as a line: `S`ystem, summary as `+`, retrieved as `?n`.
fn shown(plan: &Plan) -> String {
    let part = |p: &Part| match p {
        Part::System => "S".to_owned(),
        Part::Summary => "+".to_owned(),
        Part::Retrieved(i) => format!("?{i}"),
        Part::Message(i) => i.to_string(),
    };
    plan.parts.iter().map(part).collect::<Vec<_>>().join(" ")
}

#[test]
fn all_fits() {
    let summary = Some(KnownSummary { up_to: "1", tokens: 5 });
    let plan = plan(20, &chat(4), summary, &["1", "none"], &policy(100)).unwrap();
    assert_eq!(shown(&plan), "S 0 1 2 3 4 5 6 7");
    assert_eq!(
        (plan.tokens, plan.cuts, plan.left_out, plan.summary_wanted),
        (100, 0, LeftOut::default(), None)
    );
}

#[test]
fn a_large_piece_goes_at_once_and_then_nothing_for_a_while() {
    // 180 of room: all of it while nothing is out, 140 beside summary and retrieval, 84 after a cut.
    let mut lines = Vec::new();
    for n in 8..15 {
        let mut messages = chat(n);
        messages.pop(); // before the answer
        let plan = plan(20, &messages, None, &[], &policy(200)).unwrap();
        lines.push(format!("{} | {} out, {} cuts", shown(&plan), plan.left_out.messages, plan.cuts));
    }
    assert_eq!(
        lines,
        [
            "S 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 | 0 out, 0 cuts",
            "S 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 | 0 out, 0 cuts",
            "S 12 13 14 15 16 17 18 | 12 out, 1 cuts",
            "S 12 13 14 15 16 17 18 19 20 | 12 out, 1 cuts",
            "S 12 13 14 15 16 17 18 19 20 21 22 | 12 out, 1 cuts",
            "S 12 13 14 15 16 17 18 19 20 21 22 23 24 | 12 out, 1 cuts",
            "S 20 21 22 23 24 25 26 | 20 out, 2 cuts",
        ]
    );
}

#[test]
fn summary_and_retrieved_turns_take_their_places() {
    let mut messages = chat(10);
    messages.pop();
    let run = |summary, hits: &[&str], at| {
        let policy = Policy { retrieved_at: at, ..policy(200) };
        plan(20, &messages, summary, hits, &policy).unwrap()
    };
    let known = |up_to, tokens| Some(KnownSummary { up_to, tokens });
    // A hit brings its whole turn; what is in anyway and what does not fit is passed over.
    let p = run(known("7", 20), &["14", "nothing", "5", "0"], RetrievedAt::BeforeLastUser);
    assert_eq!(shown(&p), "S + 12 13 14 15 16 17 ?4 ?5 18");
    assert_eq!(p.tokens, 20 + 20 + 70 + 20);
    assert_eq!((p.left_out.messages, p.left_out.tokens, p.left_out.summarised), (10, 100, 6));
    assert_eq!(p.left_out.ids, ["0", "1", "2", "3", "6", "7", "8", "9", "10", "11"]);
    let wanted = p.summary_wanted.unwrap();
    assert_eq!(
        (&wanted.ids[..], &wanted.up_to[..]),
        (&IDS[8..12].iter().map(|s| s.to_string()).collect::<Vec<_>>()[..], "11")
    );
    assert!(wanted.extends && wanted.tokens_max == 20);
    let p = run(known("11", 20), &["5"], RetrievedAt::Front);
    assert_eq!(shown(&p), "S + ?4 ?5 12 13 14 15 16 17 18");
    assert_eq!(p.summary_wanted, None);
    // A summary of what is no more, or that is too long, is made anew.
    for stale in [known("gone", 5), known("7", 21), None] {
        let p = run(stale, &[], RetrievedAt::Front);
        let wanted = p.summary_wanted.unwrap();
        assert_eq!((wanted.ids.len(), wanted.extends, p.left_out.summarised), (12, false, 0));
        assert!(!p.parts.contains(&Part::Summary));
    }
}

#[test]
fn a_long_past_is_summarised_in_pieces() {
    let mut list = [(U, 10), (A, 10)].repeat(19);
    list[4].1 = 300; // longer than any window: a piece of its own
    let messages = entries(&list);
    let (mut seen, mut pieces, mut known) = (Vec::new(), Vec::new(), None);
    while let Some(wanted) = plan(20, &messages, known, &[], &policy(200)).unwrap().summary_wanted {
        assert_eq!(wanted.extends, known.is_some());
        assert_eq!(wanted.ids.last(), Some(&wanted.up_to));
        let up_to = IDS[wanted.up_to.parse::<usize>().unwrap()];
        known = Some(KnownSummary { up_to, tokens: 20 });
        pieces.push(wanted.ids.len());
        seen.extend(wanted.ids);
    }
    let plan = plan(20, &messages, known, &[], &policy(200)).unwrap();
    assert_eq!(seen, plan.left_out.ids);
    assert_eq!(plan.left_out.summarised, seen.len());
    assert_eq!(pieces, [4, 1, 14, 11]);
}

#[test]
fn a_turn_of_many_calls_loses_its_oldest_calls() {
    let mut list = vec![(U, 10), (A, 10), (U, 10)];
    list.extend([(A, 5), (T, 10), (T, 5)].repeat(10));
    let messages = entries(&list);
    let plan = plan(20, &messages, None, &["4"], &policy(200)).unwrap();
    // The question stays, then whole calls with their results.
    assert_eq!(shown(&plan), "S ?3 ?4 ?5 2 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32");
    assert!(plan.tokens <= 200);
}

#[test]
fn a_question_between_call_and_result_separates_nothing() {
    let messages = entries(&[(U, 60), (A, 10), (U, 10), (T, 10), (A, 10), (U, 30), (A, 30), (U, 10)]);
    let p = plan(20, &messages[..4], None, &[], &policy(120)).unwrap();
    assert_eq!(shown(&p), "S 0 1 2 3");
    // All four are one turn: none of them can go while it is the last one.
    let e = plan(0, &messages[..4], None, &[], &policy(89)).unwrap_err();
    assert!(matches!(e, Error::WindowTooSmall { newest: 90, .. }), "{e:?}");
    let p = plan(0, &messages, None, &["3"], &policy(130)).unwrap();
    assert_eq!(shown(&p), "S 5 6 7");
    // Found again they come as they were, with the call; the whole turn would be too long.
    let wide = Policy { retrieved_tokens_max: 30, ..policy(130) };
    assert_eq!(shown(&plan(0, &messages, None, &["3"], &wide).unwrap()), "S 5 6 ?1 ?2 ?3 7");
}

#[test]
fn what_cannot_fit_is_an_error_with_the_numbers() {
    let messages = entries(&[(U, 10), (A, 10), (U, 70), (A, 5), (T, 20)]);
    let e = plan(10, &messages, None, &[], &policy(99)).unwrap_err();
    assert!(matches!(e, Error::WindowTooSmall { system: 10, newest: 95, budget: 99 }), "{e:?}");
    let p = plan(10, &messages, Some(KnownSummary { up_to: "1", tokens: 1 }), &["0"], &policy(105)).unwrap();
    assert_eq!((shown(&p).as_str(), p.tokens), ("S 2 3 4", 105));
    assert!(plan(100, &[], None, &[], &policy(99)).is_err());
    assert_eq!(shown(&plan(99, &[], None, &[], &policy(99)).unwrap()), "S");
    for keep_percent in [0, 101] {
        let policy = Policy { keep_percent, ..policy(100) };
        assert!(matches!(plan(0, &[], None, &[], &policy), Err(Error::Invalid { .. })));
    }
    let huge = entries(&[(U, u32::MAX)].repeat(40));
    assert!(plan(u32::MAX, &huge, None, &[], &policy(u32::MAX)).is_err());
    assert_eq!(plan(0, &huge, None, &[], &policy(u32::MAX)).unwrap().left_out.messages, 39);
}

/// One turn of a conversation as it really happens: a question, calls with their results, an answer.
fn turn() -> impl Strategy<Value = Vec<(Role, u32)>> {
    let call = (1u32..40, prop::collection::vec(1u32..40, 1..4));
    (1u32..40, prop::collection::vec(call, 0..4), prop::option::weighted(0.9, 1u32..40)).prop_map(
        |(u, calls, a)| {
            let mut list = vec![(U, u)];
            for (call, results) in calls {
                list.push((A, call));
                list.extend(results.into_iter().map(|r| (T, r)));
            }
            list.extend(a.map(|a| (A, a)));
            list
        },
    )
}

fn conversation() -> impl Strategy<Value = Vec<(Role, u32)>> {
    prop::collection::vec(turn(), 0..20).prop_map(|turns| turns.concat())
}

fn any_messages() -> impl Strategy<Value = Vec<(Role, u32)>> {
    let role = prop::sample::select(vec![U, A, T, Role::System, Role::Developer]);
    prop::collection::vec((role, 0u32..60), 0..40)
}

fn numbered(list: &[(Role, u32)]) -> Vec<String> {
    (0..list.len()).map(|i| format!("m{i}")).collect()
}

fn built<'a>(list: &[(Role, u32)], ids: &'a [String]) -> Vec<Entry<'a>> {
    list.iter().zip(ids).map(|((role, tokens), id)| Entry { id, role: *role, tokens: *tokens }).collect()
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (1u32..700, 1u8..=100, 0u32..100, 0u32..100, any::<bool>()).prop_map(|(budget, keep, s, r, front)| {
        Policy {
            budget,
            keep_percent: keep,
            summary_tokens_max: s,
            retrieved_tokens_max: r,
            retrieved_at: if front { RetrievedAt::Front } else { RetrievedAt::BeforeLastUser },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn every_plan_is_sound(
        list in prop_oneof![conversation(), any_messages()],
        system in 0u32..60,
        policy in any_policy(),
        summary in prop::option::of((0usize..60, 0u32..60)),
        hits in prop::collection::vec(0usize..60, 0..8),
    ) {
        let ids = numbered(&list);
        let messages = built(&list, &ids);
        let names: Vec<String> = (0..60).map(|i| format!("m{i}")).collect();
        let summary = summary.map(|(at, tokens)| KnownSummary { up_to: &names[at], tokens });
        let hits: Vec<&str> = hits.iter().map(|h| &names[*h][..]).collect();
        let run = || plan(system, &messages, summary, &hits, &policy);
        let plan = match run() {
            Err(Error::WindowTooSmall { newest, .. }) => {
                // Only if what has to be in does not fit: at most the last turn.
                prop_assert!(u64::from(system) + newest > u64::from(policy.budget));
                let last_user = list.iter().rposition(|m| m.0 == U).unwrap_or(0);
                let from = list[..last_user].iter().rposition(|m| m.0 == A || m.0 == U).unwrap_or(0);
                let most: u64 = list[from..].iter().map(|m| u64::from(m.1)).sum();
                let all: u64 = list.iter().map(|m| u64::from(m.1)).sum();
                prop_assert!(newest <= most || newest <= all && list[from..].iter().any(|m| m.0 == T));
                return Ok(());
            }
            other => other.unwrap(),
        };
        prop_assert_eq!(&plan, &run().unwrap());

        let tokens = |p: &Part| u64::from(match p {
            Part::System => system,
            Part::Summary => summary.unwrap().tokens,
            Part::Retrieved(i) | Part::Message(i) => messages[*i].tokens,
        });
        prop_assert_eq!(plan.tokens, plan.parts.iter().map(tokens).sum::<u64>());
        prop_assert!(plan.tokens <= u64::from(policy.budget));
        prop_assert_eq!(plan.parts[0], Part::System);

        // Every message is in its place, or retrieved, or left out, and that once.
        let mut times = vec![0; list.len()];
        let mut in_place = vec![false; list.len()];
        let mut shown: Vec<usize> = Vec::new();
        for p in &plan.parts {
            match p {
                Part::Message(i) => { times[*i] += 1; in_place[*i] = true; shown.push(*i) }
                Part::Retrieved(i) => times[*i] += 1,
                Part::System | Part::Summary => {}
            }
        }
        for id in &plan.left_out.ids {
            times[id[1..].parse::<usize>().unwrap()] += 1;
        }
        prop_assert!(times.iter().all(|t| *t == 1), "{times:?}");
        prop_assert!(shown.is_sorted());
        prop_assert_eq!(plan.left_out.ids.len(), plan.left_out.messages);
        prop_assert!(plan.left_out.summarised <= plan.left_out.messages);

        if let Some(last) = list.iter().rposition(|m| m.0 == U) {
            prop_assert!(in_place[last], "the last message of the user");
        }
        prop_assert!(in_place.last().is_none_or(|kept| *kept), "the newest message");
        // A result is there if and only if what stands before it is: its call, or another result of it.
        for i in 1..list.len() {
            if list[i].0 == T && (list[i - 1].0 == A || list[i - 1].0 == T) && list[..i].iter().any(|m| m.0 == A) {
                prop_assert_eq!(in_place[i], in_place[i - 1], "message {}", i);
            }
        }
        // Hits change neither the cut nor the summary.
        let without = quarrel_store::context::plan(system, &messages, summary, &[], &policy).unwrap();
        let messages_of = |p: &Plan| p.parts.iter().filter(|p| !matches!(p, Part::Retrieved(_))).copied().collect::<Vec<_>>();
        prop_assert_eq!(messages_of(&plan), messages_of(&without));
        prop_assert_eq!(plan.summary_wanted.is_some() || plan.left_out.messages == 0 || summary.is_some()
            || policy.summary_tokens_max == 0 || policy.budget < 4 + system, true);
    }

    #[test]
    fn between_cuts_the_prompt_only_grows(list in conversation(), system in 0u32..60, policy in any_policy()) {
        let ids = numbered(&list);
        let messages = built(&list, &ids);
        let mut before: Option<Plan> = None;
        for n in 0..=messages.len() {
            let Ok(now) = plan(system, &messages[..n], None, &[], &policy) else { before = None; continue };
            if let Some(before) = before {
                prop_assert!(before.cuts <= now.cuts && now.cuts <= before.cuts + 1);
                if before.cuts == now.cuts {
                    prop_assert_eq!(&before.parts[..], &now.parts[..before.parts.len()], "at {} messages", n);
                    prop_assert_eq!(now.parts.len(), before.parts.len() + 1);
                }
            }
            before = Some(now);
        }
    }

    #[test]
    fn cuts_are_rare(tokens in prop::collection::vec((1u32..20, 1u32..20), 50..200)) {
        let list: Vec<(Role, u32)> = tokens.iter().flat_map(|(u, a)| [(U, *u), (A, *a)]).collect();
        let ids = numbered(&list);
        let policy = Policy::for_budget(400);
        let plan = plan(0, &built(&list, &ids), None, &[], &policy).unwrap();
        // After a cut the turns fill at most 60 % of 300 tokens, so 120 more have to come before the next one.
        let all: u32 = list.iter().map(|m| m.1).sum();
        prop_assert!(plan.cuts <= 1 + all / 120, "{} cuts in {all} tokens", plan.cuts);
        prop_assert!(all <= 400 || plan.cuts > 0);
    }
}
