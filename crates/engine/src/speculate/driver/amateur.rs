//! The draft model as an amateur: its logits after the sequences of a step, for contrastive decoding.

use super::Speculation;
use crate::client::{Client, Task};
use crate::scheduler::{Chunk, Scheduler};
use crate::speculate::draft::Want;
use crate::{Error, Result};
use std::{collections::HashMap, time::Instant};

impl Speculation {
    /// What the draft model says where the committed step has logits that are to be combined with its own, by sequence.
    pub(crate) fn amateur(
        &mut self,
        plan: &[Chunk],
        scheduler: &Scheduler,
        clients: &mut HashMap<u64, Client>,
    ) -> HashMap<u64, Result<Vec<f32>>> {
        let (mut requests, mut wants) = (Vec::new(), Vec::new());
        for chunk in plan.iter().filter(|c| !c.outputs.is_empty()) {
            let s = &scheduler.running()[chunk.running];
            if clients.get(&s.request).is_some_and(|c| c.wants_amateur(s.id)) {
                requests.push(s.request);
                wants.push(Want { id: s.id, tokens: &s.tokens });
            }
        }
        let began = Instant::now();
        let rows = self.rows(&wants);
        let each = began.elapsed() / requests.len().max(1) as u32;
        for (request, (_, computed)) in requests.into_iter().zip(&rows) {
            if let Some(Client { task: Task::Generate(g), .. }) = clients.get_mut(&request) {
                g.amateur_ran(*computed, each);
            }
        }
        wants.iter().map(|w| w.id).zip(rows.into_iter().map(|r| r.0)).collect()
    }

    /// What the draft model says after each of these sequences: a row of logits, and the rows that were computed for it.
    fn rows(&mut self, wants: &[Want]) -> Vec<(Result<Vec<f32>>, u64)> {
        let why = |w: &Want, why: &str| Error::Guide { step: w.tokens.len(), why: why.into() };
        let gone = |w: &Want| (Err(why(w, "the amateur model is gone, its device failed")), 0);
        let Some(draft) = &mut self.draft else { return wants.iter().map(gone).collect() };
        let mut made: Vec<(Option<Vec<f32>>, u64)> =
            wants.iter().map(|w| (None, draft.model.behind(w.id, w.tokens) as u64)).collect();
        loop {
            let open: Vec<usize> = (0..wants.len()).filter(|i| made[*i].0.is_none()).collect();
            let left: Vec<Want> =
                open.iter().map(|i| Want { id: wants[*i].id, tokens: wants[*i].tokens }).collect();
            let stepped = draft.model.step(&left, |i, row| made[open[i]].0 = Some(row.to_vec()));
            if !matches!(stepped, Ok(n) if n > 0) {
                // All are done; or those that are left do not fit; or the device failed.
                let failed = stepped.err().map(Error::from);
                let long = |w: &Want| why(w, "the answer has outgrown the amateur model's context");
                let rows = made.into_iter().zip(wants);
                return rows
                    .map(|((row, n), w)| {
                        let lost = || failed.clone().unwrap_or_else(|| long(w));
                        (row.ok_or_else(lost), n)
                    })
                    .collect();
            }
            self.draft_steps += 1;
        }
    }
}
