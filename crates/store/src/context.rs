//! What of a long conversation goes into the model's window. Pure: messages with their lengths in, a plan out; no
//! database, no model, no clock.
//!
//! The system prompt is always in, then come the summary of what was left out, and as many newest whole turns as fit;
//! old turns that a retrieval found are put where the policy says. What is at the front changes as rarely as possible:
//! once the window is full, a large piece is cut off at once ([`Policy::keep_percent`]), and then nothing moves for many
//! turns, so that the prefix cache keeps hitting. Where the cuts were is not remembered but found again by walking the
//! messages from the first: the same messages and policy give the same plan in any process.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;

use crate::messages::{Message, Role};
use crate::{Error, Result};

/// A message as the planner sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its id.
    pub id: &'a str,
    /// Who speaks.
    pub role: Role,
    /// Its length in the prompt, with what the template puts around it.
    pub tokens: u32,
}

impl<'a> Entry<'a> {
    /// A stored message, whose length in the prompt the caller knows.
    pub fn new(message: &'a Message, tokens: u32) -> Entry<'a> {
        Entry { id: &message.id, role: message.body.role, tokens }
    }
}

/// Where retrieved turns go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetrievedAt {
    /// Right before the last message of the user: other hits in the next turn leave everything before it as it is.
    #[default]
    BeforeLastUser,
    /// Behind the summary, in the order of the conversation: other hits change the prompt from there on.
    Front,
}

/// How the window is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Tokens that the prompt may have, the system prompt included: the window less the answer.
    pub budget: u32,
    /// When the turns pass their part of the budget, they are cut back to this share of it, 1 to 100.
    pub keep_percent: u8,
    /// Tokens kept free for a summary once something is left out; at most a quarter of the room.
    pub summary_tokens_max: u32,
    /// Tokens kept free for retrieved turns once something is left out; at most a quarter of the room.
    pub retrieved_tokens_max: u32,
    /// Where retrieved turns go.
    pub retrieved_at: RetrievedAt,
}

impl Policy {
    /// What is usual for a budget: an eighth for the summary and an eighth for retrieved turns, neither above 2,048.
    pub fn for_budget(budget: u32) -> Policy {
        let part = (budget / 8).min(2048);
        Policy {
            budget,
            keep_percent: 60,
            summary_tokens_max: part,
            retrieved_tokens_max: part,
            retrieved_at: RetrievedAt::default(),
        }
    }
}

/// A summary that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownSummary<'a> {
    /// The last message that it covers.
    pub up_to: &'a str,
    /// Its length in the prompt.
    pub tokens: u32,
}

/// A piece of the prompt. Numbers are places in the list of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The system prompt.
    System,
    /// The summary.
    Summary,
    /// A message from a turn that a retrieval found, to be shown as such.
    Retrieved(usize),
    /// A message in its place.
    Message(usize),
}

/// Messages that are not in the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// How many.
    pub messages: usize,
    /// Their tokens.
    pub tokens: u64,
    /// How many of them the summary in the prompt covers.
    pub summarised: usize,
    /// Which ones.
    pub ids: Vec<String>,
}

/// A summary that should be made. If more was cut off than a model can read at once, the messages are the first piece of
/// it, and the plan with the new summary wants the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SummaryWanted {
    /// What it should be made of, in order, beside the summary that there is.
    pub ids: Vec<String>,
    /// Whether it goes on from the summary that there is, or begins anew.
    pub extends: bool,
    /// The last message that it will cover.
    pub up_to: String,
    /// How long it may be.
    pub tokens_max: u32,
}

/// What goes into the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The prompt, in order.
    pub parts: Vec<Part>,
    /// Its length; never above the budget.
    pub tokens: u64,
    /// What is not in it.
    pub left_out: LeftOut,
    /// How often something was cut off up to now. While it stays, the prompt before the last turn only grows.
    pub cuts: u32,
    /// The summary to make before, or after, the answer.
    pub summary_wanted: Option<SummaryWanted>,
}

/// Messages that stay together: a tool call and its results, or one message.
#[derive(Debug)]
struct Group {
    messages: Range<usize>,
    turn: usize,
    /// What the user says stays as long as its turn does.
    pinned: bool,
}

/// Chooses what goes into the window. `hits` are ids that a retrieval found, the best first; what is in the window anyway
/// is passed over. Hits never move a cut, so a plan without them tells what to search in ([`Plan::left_out`]).
///
/// # Errors
/// [`Error::WindowTooSmall`] if the system prompt, the last user message and the newest message do not fit.
pub fn plan(
    system_tokens: u32,
    messages: &[Entry<'_>],
    summary: Option<KnownSummary<'_>>,
    hits: &[&str],
    policy: &Policy,
) -> Result<Plan> {
    if !(1..=100).contains(&policy.keep_percent) {
        return Err(Error::invalid("keep_percent", "must be 1 to 100"));
    }
    let room = u64::from(policy.budget.saturating_sub(system_tokens));
    let parts = [policy.summary_tokens_max, policy.retrieved_tokens_max];
    let [summary_max, retrieved_max] = parts.map(|p| u64::from(p).min(room / 4));
    let groups = groups(messages);
    let walk = Walk::over(messages, &groups, room, room - summary_max - retrieved_max, policy.keep_percent);
    if u64::from(system_tokens) + walk.tokens > u64::from(policy.budget) {
        let (system, budget) = (u64::from(system_tokens), u64::from(policy.budget));
        return Err(Error::WindowTooSmall { system, newest: walk.tokens, budget });
    }

    let place: HashMap<&str, usize> = messages.iter().enumerate().rev().map(|(i, m)| (m.id, i)).collect();
    let mut free = room - walk.tokens;
    let known = summary.and_then(|s| Some((*place.get(s.up_to)?, u64::from(s.tokens))));
    let cut = walk.kept.contains(&false);
    let known = known.filter(|(_, tokens)| *tokens <= summary_max); // a longer one has to be made again
    let used = known.filter(|(_, tokens)| cut && *tokens <= free);
    free -= used.map_or(0, |(_, tokens)| tokens);
    let hits = hits.iter().filter_map(|id| place.get(id).copied());
    let (retrieved, retrieved_tokens) =
        retrieve(messages, &groups, &walk.kept, hits, free.min(retrieved_max));

    let mut kept = vec![false; messages.len()];
    let kept_groups = groups.iter().zip(&walk.kept).filter(|(_, kept)| **kept);
    kept_groups.for_each(|(g, _)| kept[g.messages.clone()].fill(true));
    // Retrieved turns never come between a call and its result, so the group counts.
    let last_user = groups.iter().rfind(|g| g.pinned).map_or(0, |g| g.messages.start);
    let split = if policy.retrieved_at == RetrievedAt::Front { 0 } else { last_user };
    let left: Vec<usize> = (0..messages.len()).filter(|i| !kept[*i] && !retrieved.contains(i)).collect();
    let ids = |list: &[usize]| list.iter().map(|i| messages[*i].id.to_owned()).collect::<Vec<_>>();
    let covered = used.map_or(0, |(up_to, _)| left.partition_point(|i| *i <= up_to));
    Ok(Plan {
        parts: layout(&kept, &retrieved, used.is_some(), split),
        tokens: u64::from(system_tokens) + walk.tokens + used.map_or(0, |u| u.1) + retrieved_tokens,
        left_out: LeftOut {
            messages: left.len(),
            tokens: left.iter().map(|i| u64::from(messages[*i].tokens)).sum(),
            summarised: covered,
            ids: ids(&left),
        },
        cuts: walk.cuts,
        // Of everything that was cut off and no summary has: retrieved turns too, they may not be there the next time.
        summary_wanted: {
            let from = known.map_or(0, |(up_to, _)| up_to + 1);
            let mut free = room - 2 * summary_max; // beside the summary before and the new one
            let open = (from..messages.len()).filter(|i| summary_max > 0 && !kept[*i]);
            let piece = open.enumerate().take_while(|(n, i)| {
                let fits = u64::from(messages[*i].tokens) <= free;
                free = free.saturating_sub(u64::from(messages[*i].tokens));
                fits || *n == 0
            });
            let piece: Vec<usize> = piece.map(|(_, i)| i).collect();
            piece.last().map(|last| SummaryWanted {
                ids: ids(&piece),
                extends: known.is_some(),
                up_to: messages[*last].id.to_owned(),
                tokens_max: summary_max as u32, // at most a u32 of the policy
            })
        },
    })
}

/// Turns begin with a message of the user. One that comes between a tool call and its result begins none, or the two
/// would be separated.
fn groups(messages: &[Entry<'_>]) -> Vec<Group> {
    let mut result_follows = false; // whether the next message of model or tool is a result
    let mut interrupts = vec![false; messages.len()];
    for (i, m) in messages.iter().enumerate().rev() {
        match m.role {
            Role::Tool => result_follows = true,
            Role::Assistant => result_follows = false,
            Role::User | Role::System | Role::Developer => interrupts[i] = result_follows,
        }
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut turn = 0;
    for (i, m) in messages.iter().enumerate() {
        let user = m.role == Role::User;
        let joins = (m.role == Role::Tool || interrupts[i]) && !groups.is_empty();
        match groups.last_mut() {
            Some(last) if joins && (!last.pinned || last.messages.len() > 1) => {
                last.messages.end = i + 1;
                last.pinned |= user;
            }
            _ => {
                turn += usize::from(user && i > 0);
                groups.push(Group { messages: i..i + 1, turn, pinned: user });
            }
        }
    }
    groups
}

/// The history of a conversation, message by message, as it filled the window.
struct Walk {
    /// Which groups are still in.
    kept: Vec<bool>,
    tokens: u64,
    cuts: u32,
}

impl Walk {
    /// `full` is the room while nothing is left out, `tight` the room beside a summary and retrieved turns.
    fn over(messages: &[Entry<'_>], groups: &[Group], full: u64, tight: u64, keep_percent: u8) -> Walk {
        let target = tight * u64::from(keep_percent) / 100;
        let tokens_of =
            |g: &Group| messages[g.messages.clone()].iter().map(|m| u64::from(m.tokens)).sum::<u64>();
        let mut walk = Walk { kept: vec![false; groups.len()], tokens: 0, cuts: 0 };
        let (mut front, mut inner) = (0, 0); // before them every group is decided: of old turns, of the current one
        for (at, group) in groups.iter().enumerate() {
            walk.kept[at] = true;
            for message in &messages[group.messages.clone()] {
                walk.tokens += u64::from(message.tokens);
                let limit = if walk.cuts == 0 { full } else { tight };
                if walk.tokens <= limit {
                    continue;
                }
                let before = walk.tokens;
                while walk.tokens > target && groups[front].turn < group.turn {
                    let turn = groups[front].turn;
                    while groups[front].turn == turn {
                        walk.drop(front, tokens_of(&groups[front]));
                        front += 1;
                    }
                }
                inner = inner.max(front);
                // The current turn alone is too long: its oldest calls go, never what the user said.
                if walk.tokens > tight && groups[front].turn == group.turn {
                    while walk.tokens > target && inner < at {
                        if !groups[inner].pinned {
                            walk.drop(inner, tokens_of(&groups[inner]));
                        }
                        inner += 1;
                    }
                }
                walk.cuts += u32::from(walk.tokens < before);
            }
        }
        walk
    }

    fn drop(&mut self, group: usize, tokens: u64) {
        if std::mem::take(&mut self.kept[group]) {
            self.tokens -= tokens;
        }
    }
}

/// The turns of the hits that are not in the window, the best first while they fit; of a turn that does not fit the group
/// that was hit. Gives places and tokens.
fn retrieve(
    messages: &[Entry<'_>],
    groups: &[Group],
    kept: &[bool],
    hits: impl Iterator<Item = usize>,
    room: u64,
) -> (HashSet<usize>, u64) {
    let (mut taken, mut tokens) = (HashSet::new(), 0);
    for hit in hits {
        let at = groups.partition_point(|g| g.messages.end <= hit);
        if kept[at] || taken.contains(&hit) {
            continue;
        }
        let turn = groups[at].turn;
        let first = groups.partition_point(|g| g.turn < turn);
        let end = groups.partition_point(|g| g.turn <= turn);
        for range in [first..end, at..at + 1] {
            let left_out = range.filter(|g| !kept[*g]).flat_map(|g| groups[g].messages.clone());
            let new: Vec<usize> = left_out.filter(|m| !taken.contains(m)).collect();
            let more: u64 = new.iter().map(|m| u64::from(messages[*m].tokens)).sum();
            if tokens + more <= room {
                tokens += more;
                taken.extend(new);
                break;
            }
        }
    }
    (taken, tokens)
}

/// Retrieved messages in the order of the conversation, before the message at `split`.
fn layout(kept: &[bool], retrieved: &HashSet<usize>, summary: bool, split: usize) -> Vec<Part> {
    let mut old: Vec<usize> = retrieved.iter().copied().collect();
    old.sort_unstable();
    let in_place = |range: Range<usize>| range.filter(|i| kept[*i]).map(Part::Message);
    let mut parts = vec![Part::System];
    parts.extend(summary.then_some(Part::Summary));
    parts.extend(in_place(0..split));
    parts.extend(old.into_iter().map(Part::Retrieved));
    parts.extend(in_place(split..kept.len()));
    parts
}
