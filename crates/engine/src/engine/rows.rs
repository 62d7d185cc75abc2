//! What a step brings beside the logits of its rows: the best of them; hidden states and logits of exits for those who want them; and what another
//! model has made of sentences meanwhile.

use super::Worker;
use crate::Result;
use crate::client::{Act, Client, Task, Tools};
use crate::logits::Logits;
use crate::scheduler::Chunk;
use quarrel_ir::{Candidates, Readout, View};

impl Worker {
    /// Brings what the device chose of the step's logits.
    pub(super) fn choose(&mut self) -> Result<()> {
        let Some(view) = self.candidates else { return Ok(()) };
        self.best.resize(self.batch.outputs() * view.cols as usize, 0.0);
        if !self.best.is_empty() {
            self.device.read(self.prepared, Readout::View(view), &mut self.best)?;
        }
        Ok(())
    }

    /// Gives those who embed the hidden states of their rows of a step.
    pub(super) fn pool(&mut self, plan: &[Chunk]) -> Result<Vec<(u64, Act)>> {
        let wants = |c: &&Chunk| {
            let request = self.scheduler.running()[c.running].request;
            self.clients.get(&request).is_some_and(Client::wants_hidden)
        };
        let Some(view) = self.hidden.filter(|_| plan.iter().any(|c| wants(&c))) else {
            return Ok(Vec::new());
        };
        let dim = view.cols as usize;
        self.states.resize(self.stats.last_rows * dim, 0.0);
        self.device.read(self.prepared, Readout::View(view), &mut self.states)?;
        let (mut acts, mut row) = (Vec::new(), 0);
        for chunk in plan {
            let s = &self.scheduler.running()[chunk.running];
            let ahead = self.scheduler.ahead().iter().find(|a| a.id == s.id);
            let rows = ahead.map_or(chunk.rows.len(), |a| a.tree.nodes().len());
            let states = &self.states[row * dim..(row + rows) * dim];
            let client = self.clients.get_mut(&s.request);
            let act = client.and_then(|c| c.hidden(s.id, chunk.rows.start, states));
            if matches!(act, Some(Act::Finish)) {
                self.stats.embedded_texts += 1;
                self.stats.embedded_tokens += s.tokens.len() as u64;
            }
            acts.extend(act.map(|act| (s.request, act)));
            row += rows;
        }
        Ok(acts)
    }

    /// Brings the logits of the exits of a step here, if somebody wants them.
    pub(super) fn read_exits(&mut self, plan: &[Chunk]) -> Result<()> {
        let wants = |c: &Chunk| {
            let request = self.scheduler.running()[c.running].request;
            !c.outputs.is_empty() && self.clients.get(&request).is_some_and(Client::wants_exits)
        };
        if !plan.iter().any(wants) {
            return Ok(());
        }
        let rows = plan.iter().map(|c| c.outputs.len()).sum::<usize>() + self.scheduler.guessed();
        self.exit_rows.resize(self.exits.len(), Vec::new());
        for (view, into) in self.exits.iter().zip(&mut self.exit_rows) {
            into.resize(rows * view.cols as usize, 0.0);
            self.device.read(self.prepared, Readout::View(*view), into)?;
        }
        Ok(())
    }

    /// Goes on with answers whose sentences another model has compared.
    pub(super) fn take_compared(&mut self) {
        let mut acts = Vec::new();
        for (request, client) in self.clients.iter_mut().filter(|(_, c)| c.compares()) {
            let Task::Generate(g) = &mut client.task else { continue };
            let tools = &mut Tools {
                logits: Logits::new(&mut *self.device, self.prepared, 0, None, &mut self.row),
                exits: None,
                amateur: None,
                row_time: self.scheduler.pace().per_row(),
                scratch: &mut self.scratch,
                context: self.context,
                next_id: &mut self.next_id,
                epoch: self.epoch,
            };
            acts.extend(g.poll(tools).into_iter().map(|act| (*request, act)));
        }
        for (request, act) in acts {
            self.act(request, act);
        }
    }
}

/// The rows of all exits for one output, one after another, where they are wanted.
pub(super) fn gather(exits: &[Vec<f32>], output: usize, vocab: usize, wants: bool, into: &mut Vec<f32>) {
    if wants {
        into.clear();
        exits.iter().for_each(|e| into.extend_from_slice(&e[output * vocab..(output + 1) * vocab]));
    }
}

/// What the device chose of a row with logits.
pub(super) fn best_of(all: &[f32], candidates: Option<View>, output: usize) -> Option<Candidates<'_>> {
    let cols = candidates?.cols as usize;
    Some(Candidates::of(all.get(output * cols..(output + 1) * cols)?))
}
