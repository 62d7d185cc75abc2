//! What a step brings beside the logits of its rows: hidden states and logits of exits for those who want them; and what another
//! model has made of sentences meanwhile.

use super::Worker;
use crate::Result;
use crate::client::{Act, Client, Task, Tools};
use crate::scheduler::Chunk;
use quarrel_ir::Readout;

impl Worker {
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
                row: &mut self.row,
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
