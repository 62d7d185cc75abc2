//! Speculation in the engine's thread: before a step, guesses for the sequences that decode; after it, what became of them.
//! Here the draft model runs and its time is taken.

mod amateur;

use super::draft::{DraftModel, Want};
use super::guesser::Guesser;
use super::rates::Class;
use super::tree::{ROOT, Tree};
use super::{Speculate, depth::Load};
use crate::client::{Client, Task};
use crate::config::EngineConfig;
use crate::pace::{Pace, Work};
use crate::sampler::Scratch;
use crate::scheduler::Scheduler;
use std::{collections::HashMap, time::Instant};

/// A draft model this many tokens behind is brought up to date without an account, a step's worth at a time.
const BEHIND_MAX: usize = 48;
/// A guess of the text's own that comes true with this chance needs no draft model.
const SURE: f32 = 0.75;

/// Everything that guesses.
pub(crate) struct Speculation {
    guesser: Guesser,
    draft: Option<Drafting>,
    /// Most guesses of a sequence in a step.
    most: usize,
    context: usize,
    /// What a row more costs, in steps, if that is not measured.
    row_cost: Option<f64>,
    /// The sequences of the step that may guess.
    open: Vec<Open>,
    draft_steps: u64,
    draft_errors: u64,
}

struct Drafting {
    model: DraftModel,
    pace: Pace,
}

/// A sequence whose coming tokens are guessed.
struct Open {
    id: u64,
    request: u64,
    mode: Speculate,
    /// The sequence with the draft's guesses.
    tokens: Vec<u32>,
    /// How many of them are the sequence's.
    length: usize,
    load: Load,
    tree: Tree,
    /// Where the draft goes on.
    leaf: usize,
    /// Seconds that the draft took.
    extra: f64,
}

impl Speculation {
    pub(crate) fn new(config: &EngineConfig, draft: Option<DraftModel>) -> Speculation {
        Speculation {
            guesser: Guesser::default(),
            draft: draft.map(|model| Drafting { model, pace: Pace::default() }),
            // A state knows no token before its last, to which a wrong guess would have to go back.
            most: if config.states || config.sources { 0 } else { config.guesses },
            context: config.context,
            row_cost: config.row_cost_permille.map(|c| f64::from(c) / 1000.0),
            open: Vec::new(),
            draft_steps: 0,
            draft_errors: 0,
        }
    }

    /// Puts guesses that pay behind the decodes of the planned step, where rows, logits and blocks are left.
    pub(crate) fn plan(
        &mut self,
        scheduler: &mut Scheduler,
        clients: &mut HashMap<u64, Client>,
        scratch: &mut Scratch,
    ) {
        self.open.clear();
        if self.most == 0 {
            return;
        }
        let load = scheduler.load();
        let (pace, fixed, work) = (scheduler.pace().clone(), self.row_cost, scheduler.work());
        let cost = move |rows| seconds(fixed, &pace, work.of_rows(rows));
        for chunk in scheduler.plan().iter().filter(|c| scheduler.is_decode(c.running)) {
            let s = &scheduler.running()[chunk.running];
            // A sequence that may be shortened counts its attention row by row.
            if s.evictor.is_some() {
                continue;
            }
            let Some(g) = generation(clients, s.request).and_then(|g| g.guessing(s.id)) else { continue };
            if g.mode == Speculate::Off {
                continue;
            }
            // A guess must have a place in the context, and be wanted.
            let most = self.most.min(g.most).min(self.context - s.tokens.len());
            let load = Load { room: load.room.min(most), ..load };
            let tree = self.guesser.candidates(s.id, g.mode, &s.tokens, load.room);
            self.open.push(Open {
                id: s.id,
                request: s.request,
                mode: g.mode,
                tokens: s.tokens.clone(),
                length: s.tokens.len(),
                load,
                tree,
                leaf: ROOT,
                extra: 0.0,
            });
        }
        self.run_draft(clients, scratch, &cost);
        for open in &mut self.open {
            let now = scheduler.load();
            open.load = Load { rows: now.rows, room: open.load.room.min(now.room), ..now };
            let kept = self.guesser.choose(open.id, &open.tree, &open.load, &cost);
            open.tree = kept.clone();
            let running = scheduler.running().iter().position(|s| s.id == open.id);
            if let Some(running) = running.filter(|_| kept.guesses() > 0)
                && scheduler.guess(running, kept) < open.tree.guesses()
            {
                // For want of blocks.
                let ahead = scheduler.ahead().iter().find(|a| a.id == open.id);
                open.tree = ahead.map_or_else(|| open.tree.keep(|_| false), |a| a.tree.clone());
            }
        }
    }

    /// Lets the draft model go on from the sequences, all that want it at once and token by token.
    fn run_draft(
        &mut self,
        clients: &mut HashMap<u64, Client>,
        scratch: &mut Scratch,
        cost: &dyn Fn(usize) -> f64,
    ) {
        let Some(draft) = &mut self.draft else { return };
        let mut active: Vec<usize> = (0..self.open.len())
            .filter(|i| {
                let o = &self.open[*i];
                let sure =
                    o.tree.children(ROOT).any(|c| self.guesser.chance(o.id, o.tree.nodes()[c].class) > SURE);
                o.mode.drafts() && o.load.room > 0 && !sure
            })
            .collect();
        let drafted = active.clone();
        for i in &drafted {
            let o = &self.open[*i];
            if let Some(g) = generation(clients, o.request).and_then(|g| g.guessing(o.id)) {
                g.sampler.guess();
            }
        }
        let mut failed = false;
        for _ in 0..self.most {
            let behind: Vec<usize> =
                active.iter().map(|i| draft.model.behind(self.open[*i].id, &self.open[*i].tokens)).collect();
            let mut wanted: Vec<(usize, usize)> = active.iter().copied().zip(behind).collect();
            // What each of them would cost if all took part.
            let rows: usize = wanted.iter().map(|w| w.1.min(BEHIND_MAX)).sum();
            let each = match self.row_cost {
                Some(c) => c,
                None => draft.pace.predict(Work { rows, seen: 0 }).as_secs_f64() / wanted.len().max(1) as f64,
            };
            wanted.retain(|(i, behind)| {
                let o = &self.open[*i];
                let full = o.tokens.len() - o.length >= o.load.room;
                *behind > BEHIND_MAX
                    || !full && self.guesser.asks_draft(o.id, &o.tree, o.leaf, each, &o.load, cost)
            });
            if wanted.is_empty() {
                break;
            }
            let wants: Vec<Want> = wanted
                .iter()
                .map(|(i, _)| Want { id: self.open[*i].id, tokens: &self.open[*i].tokens })
                .collect();
            let (open, mut drawn) = (&self.open, Vec::new());
            let began = Instant::now();
            let outcome = draft.model.step(&wants, |w, row| {
                let i = wanted[w].0;
                let o = &open[i];
                let g = generation(clients, o.request).and_then(|g| g.guessing(o.id));
                // A draft whose logits are no distribution has nothing to say.
                if let Some(Ok((token, p))) = g.map(|g| g.sampler.next_guess(row, scratch)) {
                    drawn.push((i, token, p));
                }
            });
            let elapsed = began.elapsed();
            match outcome {
                Ok(rows) => draft.pace.observe(Work { rows, seen: 0 }, elapsed),
                Err(_) => failed = true,
            }
            self.draft_steps += 1;
            let share = self.row_cost.unwrap_or(elapsed.as_secs_f64() / wanted.len() as f64);
            for (i, behind) in &wanted {
                self.open[*i].extra += if *behind > BEHIND_MAX { 0.0 } else { share };
            }
            active.clear();
            for (i, token, p) in drawn {
                let o = &mut self.open[i];
                o.leaf = o.tree.add(o.leaf, token, Class::draft(p));
                o.tokens.push(token);
                active.push(i);
            }
            if failed || active.is_empty() {
                break;
            }
        }
        for i in drafted {
            let o = &self.open[i];
            if let Some(g) = generation(clients, o.request).and_then(|g| g.guessing(o.id)) {
                g.sampler.take_back();
            }
        }
        if failed {
            // The requests do not need it: they go on without.
            self.draft = None;
            self.draft_errors += 1;
        }
    }

    /// Books the step that was planned and has been run.
    pub(crate) fn learn(&mut self, scheduler: &Scheduler) {
        let work = scheduler.work();
        let cost = |rows| seconds(self.row_cost, scheduler.pace(), work.of_rows(rows));
        for o in self.open.drain(..) {
            // What has ended is forgotten.
            let Some(s) = scheduler.running().iter().find(|s| s.id == o.id) else { continue };
            // One that lost more than it had drawn taught nothing.
            let Some(drawn) = s.tokens.len().checked_sub(o.length) else { continue };
            self.guesser.settle(o.id, o.mode, (&o.tree, o.extra), (&s.tokens, drawn), &o.load, &cost);
        }
    }

    /// A sequence lost its last tokens.
    pub(crate) fn rewind(&mut self, id: u64) {
        self.guesser.rewind(id);
    }

    /// A sequence is over.
    pub(crate) fn forget(&mut self, id: u64) {
        self.guesser.forget(id);
        if let Some(draft) = &mut self.draft {
            draft.model.forget(id);
        }
    }

    /// Every sequence is over.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.guesser.clear();
        if let Some(draft) = &mut self.draft {
            draft.model.clear();
        }
    }

    /// Steps of the draft model, and failures.
    pub(crate) fn draft_counts(&self) -> (u64, u64) {
        (self.draft_steps, self.draft_errors)
    }

    /// Checks that nothing is kept of sequences that are over, when all are. For debug builds, as the scheduler's.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        if self.guesser.len() > 0 {
            return Err(format!("{} sequences that are over are still guessed", self.guesser.len()));
        }
        self.draft.as_ref().map_or(Ok(()), |d| d.model.check_integrity())
    }
}

/// The time of a step.
fn seconds(row_cost: Option<f64>, pace: &Pace, work: Work) -> f64 {
    row_cost.map_or_else(|| pace.predict(work).as_secs_f64(), |c| 1.0 + c * work.rows as f64)
}

fn generation(clients: &mut HashMap<u64, Client>, request: u64) -> Option<&mut crate::client::Generation> {
    match &mut clients.get_mut(&request)?.task {
        Task::Generate(g) => Some(g),
        _ => None,
    }
}
