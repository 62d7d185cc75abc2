//! What becomes of sequences and requests after a step: the engine's part of each [`Act`].

use super::Worker;
use crate::Result;
use crate::client::Act;
use crate::events::FinishReason;

impl Worker {
    /// Carries out what became of a sequence.
    pub(super) fn act(&mut self, request: u64, act: Act) {
        match act {
            Act::Push { sequence, token } => self.scheduler.push(sequence, token),
            Act::Fork { from, id, token } => {
                if let Some(client) = self.clients.get_mut(&request) {
                    client.sequences.push(id);
                    self.scheduler.fork(from, id);
                    self.scheduler.push(id, token);
                }
            }
            Act::Rewind { sequence, back, then } => {
                self.scheduler.rewind(sequence, back);
                self.speculation.rewind(sequence);
                then.into_iter().for_each(|token| self.scheduler.push(sequence, token));
            }
            Act::Score { of, id, tokens, from } => {
                if let Some(client) = self.clients.get_mut(&request) {
                    client.sequences.push(id);
                    self.scheduler.score_beside(of, id, tokens, from);
                }
            }
            Act::End { sequence } => {
                if let Some(client) = self.clients.get_mut(&request) {
                    client.sequences.retain(|s| *s != sequence);
                }
                self.speculation.forget(sequence);
                drop(self.scheduler.remove(sequence));
            }
            Act::Finish => self.finish(request, Ok(FinishReason::Stop)),
            Act::Fail(error) => self.finish(request, Err(error)),
        }
    }

    /// Ends a request and frees its blocks.
    pub(super) fn finish(&mut self, request: u64, outcome: Result<FinishReason>) {
        let Some(client) = self.clients.remove(&request) else { return };
        self.fetching.remove(&request);
        for id in &client.sequences {
            self.speculation.forget(*id);
            drop(self.scheduler.remove(*id));
        }
        let count = match &outcome {
            Err(_) => &mut self.stats.failed,
            Ok(FinishReason::Aborted) => &mut self.stats.cancelled,
            Ok(FinishReason::Deadline) => &mut self.stats.expired,
            Ok(_) => &mut self.stats.finished,
        };
        *count += 1;
        let (guided, looped) = client.guided();
        self.stats.rewinds += guided.rewinds;
        self.stats.withdrawn_tokens += guided.withdrawn_tokens;
        self.stats.guide_rows += guided.extra_rows;
        self.stats.repetitions += u64::from(looped);
        // The figures are up to date before anyone can learn that the request is over.
        self.publish_stats();
        match outcome {
            Err(error) => client.fail(error),
            Ok(reason) => client.finish(reason, &self.row),
        }
    }
}
