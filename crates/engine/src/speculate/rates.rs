//! How often guesses come true, by what they rest on: a long match is worth more than a short one, a usual continuation more
//! than a rare one. A request's own experience is laid over that of its engine, and that over a prior.

/// Weight of what is known beforehand, in guesses.
const PRIOR_WEIGHT: f32 = 2.0;
/// Weight of the engine's experience in a request's estimate, in guesses.
const SHARED_WEIGHT: f32 = 3.0;
/// Each observation fades so that about the last 16 of a class count.
const KEEP: f32 = 1.0 - 1.0 / 16.0;

/// What a guess rests on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Class(u8);

const LOOKUP: usize = 7;
const NGRAM: usize = 12;
const DRAFT: usize = 5;
const CLASSES: usize = LOOKUP + NGRAM + DRAFT;

/// Chance of each class before anything is measured; fixed where an average text put them.
const PRIORS: [f32; CLASSES] = [
    0.10, 0.25, 0.45, 0.60, 0.72, 0.82, 0.90, // lookup, by the length of the match
    0.10, 0.15, 0.20, 0.30, 0.35, 0.45, 0.35, 0.50, 0.60, 0.50, 0.65,
    0.80, // n-grams, by share and order
    0.15, 0.40, 0.60, 0.75, 0.90, // a draft model, by the token's probability
];

impl Class {
    /// A repetition whose last `n` tokens agree with the text.
    pub(crate) fn lookup(n: usize) -> Class {
        Class([2, 3, 4, 6, 10, 18].partition_point(|least| *least <= n) as u8)
    }

    /// A continuation that came `count` of `total` times after `order` tokens.
    pub(crate) fn ngram(order: usize, count: u32, total: u32) -> Class {
        let share = count as f32 / total.max(1) as f32;
        let seen = [0.5, 0.8].partition_point(|s| share >= *s) + usize::from(share >= 0.8 && count >= 4);
        Class((LOOKUP + 3 * seen + order.clamp(2, 4) - 2) as u8)
    }

    /// A draft model gave the token probability `p`.
    pub(crate) fn draft(p: f32) -> Class {
        Class((LOOKUP + NGRAM + [0.2, 0.5, 0.75, 0.95].partition_point(|least| p >= *least)) as u8)
    }

    /// Chance before anything is measured.
    pub(crate) fn prior(self) -> f32 {
        PRIORS[self.0 as usize]
    }
}

/// Guesses and how many of them came true, fading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rate {
    trials: f32,
    hits: f32,
}

/// Experience by class.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rates([Rate; CLASSES]);

impl Rates {
    /// A guess that was put to the test.
    pub(crate) fn observe(&mut self, class: Class, hit: bool) {
        let r = &mut self.0[class.0 as usize];
        r.trials = r.trials * KEEP + 1.0;
        r.hits = r.hits * KEEP + f32::from(u8::from(hit));
    }

    /// Chance that a guess of this class comes true if all before it do, for a request whose engine has `shared`.
    pub(crate) fn chance(&self, shared: &Rates, class: Class) -> f32 {
        let blend = |r: Rate, chance: f32, weight: f32| (r.hits + weight * chance) / (r.trials + weight);
        let i = class.0 as usize;
        blend(self.0[i], blend(shared.0[i], PRIORS[i], PRIOR_WEIGHT), SHARED_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_reasons_are_better_classes() {
        let rising = |classes: &[Class]| classes.windows(2).all(|w| w[0].prior() <= w[1].prior());
        assert!(rising(&[1, 2, 3, 4, 6, 10, 18, 500].map(Class::lookup)));
        assert_ne!(Class::lookup(2), Class::lookup(1));
        assert!(rising(&[(1, 4), (2, 4), (4, 4), (9, 9)].map(|(c, t)| Class::ngram(3, c, t))));
        assert!(rising(&[2, 3, 4, 9].map(|o| Class::ngram(o, 5, 5))));
        assert!(rising(&[0.0, 0.2, 0.6, 0.9, 1.0].map(Class::draft)));
        let most = [Class::ngram(4, u32::MAX, u32::MAX), Class::draft(f32::NAN), Class::draft(9.0)];
        assert!(most.iter().all(|c| (c.0 as usize) < CLASSES));
    }

    #[test]
    fn estimates_follow_what_is_measured_and_forget_the_past() {
        let class = Class::lookup(5);
        let (mut own, mut shared) = (Rates::default(), Rates::default());
        assert!((own.chance(&shared, class) - class.prior()).abs() < 1e-6);
        (0..40).for_each(|_| shared.observe(class, false));
        let unlucky = own.chance(&shared, class);
        assert!(unlucky < 0.1, "{unlucky}");
        (0..40).for_each(|_| own.observe(class, true));
        assert!(own.chance(&shared, class) > 0.8);
        (0..40).for_each(|_| own.observe(class, false));
        assert!(own.chance(&shared, class) < 0.12);
        // One class says nothing of another.
        assert!((own.chance(&shared, Class::lookup(2)) - Class::lookup(2).prior()).abs() < 1e-6);
    }
}
