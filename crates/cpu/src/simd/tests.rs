//! Every vector operation against its scalar, on every instruction set.

use super::*;

/// Applies a named function to every value, 16 at a time.
struct Map<'a> {
    name: &'static str,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Map<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.x.chunks_exact(LANES).zip(self.y.chunks_exact_mut(LANES)) {
            let v = s.load(x);
            let r = match self.name {
                "exp" => v.exp(),
                "tanh" => v.tanh(),
                "sigmoid" => v.sigmoid(),
                "silu" => v.silu(),
                "gelu_tanh" => v.gelu_tanh(),
                "gelu_erf" => v.gelu_erf(),
                "round" => v.round(),
                other => panic!("{other}"),
            };
            r.store(y);
        }
    }
}

fn map(isa: Isa, name: &'static str, x: &[f32]) -> Vec<f32> {
    let mut padded = x.to_vec();
    padded.resize(x.len().next_multiple_of(LANES), 0.0);
    let mut y = vec![0.0; padded.len()];
    isa.run(Map { name, x: &padded, y: &mut y });
    y.truncate(x.len());
    y
}

/// Erf by its series with positive terms only; beyond 5 by the continued fraction of erfc.
fn phi(x: f64) -> f64 {
    let a = x.abs() / std::f64::consts::SQRT_2;
    let erfc = if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > 1e-18 * sum {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        1.0 - 2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else {
        let mut f = 0.0;
        for k in (1..200).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + f)
    };
    if x < 0.0 { 0.5 * erfc } else { 1.0 - 0.5 * erfc }
}

fn exact(name: &str, x: f64) -> f64 {
    match name {
        "exp" => x.exp(),
        "tanh" => x.tanh(),
        "sigmoid" => 1.0 / (1.0 + (-x).exp()),
        "silu" => x / (1.0 + (-x).exp()),
        "gelu_tanh" => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        "gelu_erf" => x * phi(x),
        other => panic!("{other}"),
    }
}

#[test]
fn functions_are_near_the_exact_values() {
    // name, range, relative error in units of 2^-24, absolute floor
    for (name, range, ulps, floor) in [
        ("exp", 87.0, 3.0, 0.0),
        ("tanh", 20.0, 4.0, 0.0),
        ("sigmoid", 80.0, 6.0, 0.0),
        ("silu", 80.0, 6.0, 0.0),
        // The cube's rounding is multiplied by the exponent, far in the tail.
        ("gelu_tanh", 5.0, 60.0, 1e-9),
        ("gelu_erf", 5.0, 40.0, 1e-9),
    ] {
        let x: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 / 40_000.0 * range).collect();
        for isa in Isa::available() {
            let y = map(isa, name, &x);
            let mut worst = (0.0, 0.0);
            for (x, y) in x.iter().zip(&y) {
                let e = exact(name, f64::from(*x));
                let error =
                    ((f64::from(*y) - e).abs() - floor).max(0.0) / e.abs().max(1e-300) * 2f64.powi(24);
                if error > worst.0 {
                    worst = (error, *x);
                }
            }
            println!("{isa} {name}: {worst:?}");
            assert!(worst.0 <= ulps, "{isa} {name}: {} units at {}", worst.0, worst.1);
        }
    }
}

#[test]
fn functions_keep_infinity_nan_and_the_ends_of_the_range() {
    const INF: f32 = f32::INFINITY;
    let x = [
        f32::NAN,
        INF,
        -INF,
        0.0,
        -0.0,
        1e30,
        -1e30,
        89.0,
        88.72283,
        -103.9,
        -104.5,
        -87.5,
        f32::MAX,
        f32::MIN,
    ];
    for isa in Isa::available() {
        let check = |name, want: [f32; 14]| {
            for ((x, y), want) in x.iter().zip(map(isa, name, &x)).zip(want) {
                let same = y.to_bits() == want.to_bits()
                    || (y.is_nan() && want.is_nan())
                    || (y - want).abs() <= 4e-7 * want.abs() + 2e-45;
                assert!(same, "{isa} {name}({x}) = {y}, not {want}");
            }
        };
        let e = |x: f32| (f64::from(x).exp()) as f32;
        check(
            "exp",
            [f32::NAN, INF, 0.0, 1.0, 1.0, INF, 0.0, INF, e(88.72283), e(-103.9), 0.0, e(-87.5), INF, 0.0],
        );
        check("tanh", [f32::NAN, 1., -1., 0., -0., 1., -1., 1., 1., -1., -1., -1., 1., -1.]);
        check(
            "silu",
            [f32::NAN, INF, 0., 0., 0., 1e30, 0., 89., 88.72283, 0., 0., -87.5 * e(-87.5), f32::MAX, 0.],
        );
        check("gelu_tanh", [f32::NAN, INF, 0., 0., 0., 1e30, 0., 89., 88.72283, 0., 0., 0., f32::MAX, 0.]);
        check("gelu_erf", [f32::NAN, INF, 0., 0., 0., 1e30, 0., 89., 88.72283, 0., 0., 0., f32::MAX, 0.]);
        check("sigmoid", [f32::NAN, 1., 0., 0.5, 0.5, 1., 0., 1., 1., 0., 0., e(-87.5), 1., 0.]);
    }
    assert_eq!(
        map(Isa::detect(), "round", &[0.5, 1.5, 2.5, -0.5, -1.5, 3.4999])[..],
        [0., 2., 2., 0., -2., 3.]
    );
}

/// Half precision both ways, sums, and the partial loads and stores.
struct Mixed;

impl Kernel for Mixed {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in (0..=u16::MAX).step_by(LANES) {
            let bits: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
            let values = s.load_f16(&bits).to_array();
            let mut back = [0; LANES];
            s.load(&values).store_f16(&mut back);
            let wide = s.load_bf16(&bits).to_array();
            for i in 0..LANES {
                assert_eq!(wide[i].to_bits(), u32::from(bits[i]) << 16);
                let portable = f16_to_f32(bits[i]);
                assert!(
                    values[i].to_bits() == portable.to_bits() || (portable.is_nan() && values[i].is_nan())
                );
                assert_eq!(
                    back[i] & 0xfdff,
                    bits[i] & 0xfdff,
                    "a NaN may become quiet, nothing else changes"
                );
            }
        }
        for i in 0..200_000u32 {
            let x: [f32; LANES] =
                std::array::from_fn(|l| f32::from_bits((i * 16 + l as u32).wrapping_mul(2_654_435_761)));
            let mut half = [0; LANES];
            s.load(&x).store_f16(&mut half);
            for l in 0..LANES {
                if x[l].is_nan() {
                    assert!(half[l] & 0x7fff > 0x7c00);
                } else {
                    assert_eq!(half[l], f32_to_f16(x[l]), "{}", x[l]);
                }
            }
        }
        let x: [f32; LANES] = std::array::from_fn(|i| 1.0 + (i as f32) * 1e-7 - (i * i) as f32 * 0.3);
        let tree = |f: fn(f32, f32) -> f32| {
            let mut v = x;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    v[i] = f(v[i], v[i + half]);
                }
            }
            v[0]
        };
        assert_eq!(s.load(&x).sum().to_bits(), tree(|a, b| a + b).to_bits());
        assert_eq!(s.load(&x).largest(), tree(f32::max));
        let mut five = [9.0; 5];
        s.load_partial(&x[..3], 7.0).store_partial(&mut five);
        assert_eq!(five, [x[0], x[1], x[2], 7.0, 7.0]);
        assert_eq!(s.load_f16_partial(&[0x3c00]).sum(), 1.0);
        let mut two = [0; 2];
        s.splat(-2.0).store_f16_partial(&mut two);
        assert_eq!(two, [0xc000; 2]);
        let nan = s.splat(f32::NAN);
        assert!(s.splat(1.0).max(nan).sum().is_nan() && s.splat(1.0).min(nan).sum().is_nan());
        assert_eq!(nan.max(s.splat(1.0)).sum(), 16.0);
        assert_eq!((-s.splat(4.0)).abs().sqrt().copysign(s.splat(-0.0)).sum(), -32.0);
    }
}

#[test]
fn loads_stores_and_reductions_agree_on_every_instruction_set() {
    for isa in Isa::available() {
        isa.run(Mixed);
    }
    assert_eq!(f32_to_f16(65520.0), 0x7c00);
    assert_eq!(f32_to_f16(65519.996), 0x7bff);
    assert_eq!(f32_to_f16(2.98e-8), 0);
}

/// What the operations on words make of some words.
struct Words<'a>(&'a [i32; 16], &'a [i32; 16]);

impl Kernel for Words<'_> {
    type Out = Vec<[i32; 16]>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        // SAFETY: 16 words each.
        let (a, b) = unsafe { (s.load_words(self.0.as_ptr().cast()), s.load_words(self.1.as_ptr().cast())) };
        let floats = s.to_floats(b);
        [
            s.words(7),
            s.and(a, 0x00ff_00ff),
            s.down::<8>(a),
            s.down::<12>(a),
            s.dot_halves(b, s.and(a, 0x000f_000f), b),
            s.add_words(s.and(a, 0xffff), b),
            s.pair_up(s.and(b, 0xfff)),
            s.round_to_words(floats * s.splat(0.25)),
            s.round_to_words(-floats * s.splat(0.5)),
        ]
        .map(|w| s.to_words(w))
        .to_vec()
    }
}

#[test]
fn words_are_the_same_everywhere() {
    let a = std::array::from_fn(|i| (i as i32 + 1).wrapping_mul(0x3b9a_ca07));
    let b = std::array::from_fn(|i| (i as i32 - 7) * 12_345);
    let want = Isa::PORTABLE.run(Words(&a, &b));
    let (low, high) = (i32::from(b[3] as i16), b[3] >> 16);
    assert_eq!(want[4][3], b[3] + (a[3] & 15) * low + (a[3] >> 16 & 15) * high);
    assert_eq!(want[6][..2], [b[0] & 0xfff | (b[2] & 0xfff) << 16, b[1] & 0xfff | (b[3] & 0xfff) << 16]);
    Isa::available().into_iter().for_each(|isa| assert_eq!(isa.run(Words(&a, &b)), want, "{isa}"));
}
