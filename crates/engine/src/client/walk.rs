//! The steps of a contrastive search: when all candidates have their rows, one of them is the answer's next token, and what may
//! follow it are the next candidates.

use super::{Act, Generation, Tools};
use crate::constraint::ConstraintBox;
use crate::events::FinishReason;
use crate::guide::{Candidate, Turn, Walk};
use crate::request::LogprobsOf;
use crate::sampler::Choice;
use crate::sequence::Sequence;
use crate::{Error, Result};
use std::time::{Duration, Instant};

impl Generation {
    /// Uses the row of the prompt, or that of a candidate.
    pub(super) fn walk(
        &mut self,
        s: &Sequence,
        tools: &mut Tools,
        now: Instant,
        mut between: impl FnMut(Duration),
    ) -> Result<Vec<Act>> {
        let (Some(walk), length) = (&mut self.walk, s.tokens.len()) else { return Ok(Vec::new()) };
        let branch = &mut self.branches[0];
        let answer = s.tokens[self.prompt..].iter().copied();
        let constraint = match walk.open.iter_mut().find(|c| c.sequence == s.id) {
            Some(candidate) => candidate.constraint.as_mut(),
            None => self.constraints.get_mut(&s.id),
        };
        let k = walk.rule.k as usize;
        let next =
            branch.sampler.best(tools.logits.whole()?.0, k, answer, constraint, length, tools.scratch)?;
        if walk.open.is_empty() {
            let constraint = self.constraints.remove(&s.id);
            return spawn(walk, s.id, next, constraint, length, tools);
        }
        if !walk.offer(s.id, next) {
            return Ok(Vec::new());
        }
        let beside = walk.open.len() as u32 - 1;
        let mut top: Vec<(u32, f32)> = walk.open.iter().map(|c| (c.token, c.logprob)).collect();
        let Some((chosen, others)) = walk.choose() else { return Ok(Vec::new()) };
        top.truncate(self.top);
        self.guided.extra_rows += u64::from(beside);
        self.guided.time += tools.row_time * beside;
        between(now.saturating_duration_since(branch.last));
        let time = now.saturating_duration_since(std::mem::replace(&mut branch.last, now));
        branch.sequence = chosen.sequence;
        let end = match length >= self.most.unwrap_or(tools.context) {
            _ if self.stop_ids.contains(&chosen.token) => Some(FinishReason::Stop),
            _ if branch.made + 1 >= self.max_tokens => Some(FinishReason::Length),
            true => Some(FinishReason::ContextFull),
            false => None,
        };
        let raw = chosen.logprob;
        let logprob = (self.logprobs_of != LogprobsOf::Unreported).then_some(raw);
        let choice = Choice { id: chosen.token, logprob, top, raw, certainty: 0.0, trace: None };
        let turn = match &mut branch.guide {
            // It ends loops and takes nothing back.
            Some(guide) => guide.take(choice, None, end, time, length, &mut branch.sampler)?,
            None => Turn {
                told: if end == Some(FinishReason::Stop) { vec![] } else { vec![choice] },
                end,
                ..Turn::default()
            },
        };
        turn.told.into_iter().for_each(|c| self.tell(0, c));
        let branch = &mut self.branches[0];
        (branch.made, branch.reason) = (branch.made + 1, turn.end);
        let mut acts: Vec<Act> = others.into_iter().map(|sequence| Act::End { sequence }).collect();
        match (turn.end, &mut self.walk) {
            (None, Some(walk)) => {
                let next = chosen.next.unwrap_or_default();
                acts.extend(spawn(walk, chosen.sequence, next, chosen.constraint, length, tools)?);
            }
            _ => acts.push(Act::End { sequence: chosen.sequence }),
        }
        Ok(acts)
    }
}

/// Makes a sequence of each candidate after `from`; the first goes on in it, so it comes last.
fn spawn(
    walk: &mut Walk,
    from: u64,
    next: Vec<(u32, f32)>,
    constraint: Option<ConstraintBox>,
    step: usize,
    tools: &mut Tools,
) -> Result<Vec<Act>> {
    if next.is_empty() {
        return Err(Error::Guide { step, why: "no token is left that could come next".into() });
    }
    let mut acts = Vec::with_capacity(next.len());
    for (i, (token, logprob)) in next.into_iter().enumerate() {
        let mut constraint = constraint.clone();
        if let Some(c) = &mut constraint {
            c.accept(token, step)?;
        }
        let id = if i == 0 { from } else { tools.new_id() };
        walk.open.push(Candidate::new(id, (token, logprob), constraint));
        acts.push(match i {
            0 => Act::Push { sequence: from, token },
            _ => Act::Fork { from, id, token },
        });
    }
    acts.rotate_left(1);
    Ok(acts)
}
