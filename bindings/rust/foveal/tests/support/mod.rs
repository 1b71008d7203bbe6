//! Attention written down as the contract states it, one row at a time: once in float64 (the oracle), once as the
//! textbook does it in the input's own precision (the reference that the tolerance of section 1.10 measures by). Shares
//! nothing with the library.

#![allow(dead_code)] // each test takes what it needs

pub mod random;

use random::Random;

/// The types of q, k, v and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F32,
    Bf16,
    F16,
}

pub const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::F16];

impl Format {
    /// The nearest value of the format, ties to even.
    pub fn round(self, x: f64) -> f64 {
        let (digits, least_exponent, largest) = match self {
            Format::F32 => (24, -126, f64::from(f32::MAX)),
            Format::Bf16 => (8, -126, 3.3895313892515355e38),
            Format::F16 => (11, -14, 65504.0),
        };
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        let exponent = (x.abs().log2().floor() as i32).max(least_exponent);
        // log2() may be off by one at powers of two; then the unit is, and the check below mends it.
        let exponent = if x.abs() >= 2f64.powi(exponent + 1) { exponent + 1 } else { exponent };
        let exponent = if x.abs() < 2f64.powi(exponent) && exponent > least_exponent { exponent - 1 } else { exponent };
        let unit = 2f64.powi(exponent - digits + 1);
        let rounded = (x / unit).round_ties_even() * unit;
        if rounded.abs() > largest {
            f64::INFINITY.copysign(x)
        } else {
            rounded
        }
    }

    pub fn round_f32(self, x: f32) -> f32 {
        self.round(f64::from(x)) as f32
    }

    /// Bits of a value that the format holds exactly.
    pub fn bits(self, x: f32) -> u16 {
        match self {
            Format::Bf16 => (x.to_bits() >> 16) as u16,
            Format::F16 => {
                let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
                let magnitude = f64::from(x.abs());
                if x.is_nan() {
                    return sign | 0x7e00;
                }
                if x.is_infinite() {
                    return sign | 0x7c00;
                }
                if magnitude < 2f64.powi(-14) {
                    return sign | (magnitude * 2f64.powi(24)) as u16;
                }
                let exponent = ((x.to_bits() >> 23) & 0xff) as i32 - 127;
                sign | (((exponent + 15) as u16) << 10) | ((x.to_bits() >> 13) & 0x3ff) as u16
            }
            Format::F32 => unreachable!("f32 has 32 bits"),
        }
    }

    pub fn value(self, bits: u16) -> f32 {
        match self {
            Format::Bf16 => f32::from_bits(u32::from(bits) << 16),
            Format::F16 => {
                let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
                let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
                sign * match exponent {
                    0 => fraction * 2f32.powi(-24),
                    31 if fraction == 0.0 => f32::INFINITY,
                    31 => f32::NAN,
                    _ => (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
                }
            }
            Format::F32 => unreachable!("f32 has 32 bits"),
        }
    }
}

/// A problem. All tensors are those of the varlen form, row-major: dense ones are sequences of one length.
#[derive(Clone, Debug)]
pub struct Problem {
    pub format: Format,
    pub lengths: Vec<(usize, usize)>, // of the queries and the keys
    pub used: Vec<(usize, usize)>,    // empty: all
    pub heads_q: usize,
    pub heads_k: usize,
    pub d: usize,
    pub d_v: usize,
    pub scale: Option<f32>,
    pub left: Option<usize>,
    pub right: Option<usize>,
    pub top_left: bool,
    pub chunk: usize,
    pub softcap: f32,
    pub slopes: Vec<f32>, // [h_q], or empty
    pub sinks: Vec<f32>,  // [h_q], or empty
    pub bias: Vec<f32>,   // [b, h_q, s_q, s_k], or empty; dense
    pub mask: Vec<bool>,  // likewise
    pub logits: f32,      // standard deviation that the scores are to have, about
    pub dropout_p: f32,   // a multiple of 2^-16
    pub kept: Vec<bool>,  // by dropout: [b, h_q, most s_q, most s_k], or empty
}

impl Problem {
    pub fn new(format: Format, lengths: &[(usize, usize)], heads: (usize, usize), d: usize) -> Self {
        Problem {
            format,
            lengths: lengths.to_vec(),
            used: vec![],
            heads_q: heads.0,
            heads_k: heads.1,
            d,
            d_v: d,
            scale: None,
            left: None,
            right: None,
            top_left: false,
            chunk: 0,
            softcap: 0.0,
            slopes: vec![],
            sinks: vec![],
            bias: vec![],
            mask: vec![],
            logits: 1.0,
            dropout_p: 0.0,
            kept: vec![],
        }
    }

    pub fn total_q(&self) -> usize {
        self.lengths.iter().map(|l| l.0).sum()
    }

    pub fn total_k(&self) -> usize {
        self.lengths.iter().map(|l| l.1).sum()
    }

    pub fn used(&self, sequence: usize) -> (usize, usize) {
        *self.used.get(sequence).unwrap_or(&self.lengths[sequence])
    }

    /// The keys that window, alignment and chunks let row i see.
    pub fn seen(&self, i: usize, sequence: usize) -> std::ops::Range<usize> {
        let (len_q, len_k) = self.used(sequence);
        let position = self.position(i, len_q, len_k);
        let (mut first, mut last) = (0i64, len_k as i64);
        if let Some(left) = self.left {
            first = first.max(position - left as i64);
        }
        if let Some(right) = self.right {
            last = last.min(position + right as i64 + 1);
        }
        if self.chunk > 0 {
            let begin = position.div_euclid(self.chunk as i64) * self.chunk as i64;
            first = first.max(begin);
            last = last.min(begin + self.chunk as i64);
        }
        if first < last {
            first as usize..last as usize
        } else {
            0..0
        }
    }

    /// The largest lengths.
    pub fn most(&self) -> (usize, usize) {
        self.lengths.iter().fold((0, 0), |most, &(q, k)| (most.0.max(q), most.1.max(k)))
    }

    /// What dropout multiplies a weight of the softmax by.
    pub fn dropout_factor(&self, sequence: usize, head: usize, row: usize, key: usize) -> f64 {
        let (most_q, most_k) = self.most();
        match self.kept.get(((sequence * self.heads_q + head) * most_q + row) * most_k + key) {
            None => 1.0,
            Some(true) => 1.0 / (1.0 - f64::from(self.dropout_p)),
            Some(false) => 0.0,
        }
    }

    pub fn position(&self, i: usize, len_q: usize, len_k: usize) -> i64 {
        i as i64 + if self.top_left { 0 } else { len_k as i64 - len_q as i64 }
    }
}

/// Inputs as values that the format holds exactly.
#[derive(Clone, Debug)]
pub struct Data {
    pub q: Vec<f32>, // [total_q, h_q, d]
    pub k: Vec<f32>, // [total_k, h_k, d]
    pub v: Vec<f32>, // [total_k, h_k, d_v]
}

pub fn random_data(p: &Problem, seed: u64) -> Data {
    let mut random = Random::new(seed);
    let mut normal = |count: usize, deviation: f32| -> Vec<f32> {
        (0..count).map(|_| p.format.round_f32(random.normal() * deviation)).collect()
    };
    let deviation = p.logits.sqrt(); // of q and k, with the default scale
    Data {
        q: normal(p.total_q() * p.heads_q * p.d, deviation),
        k: normal(p.total_k() * p.heads_k * p.d, deviation),
        v: normal(p.total_k() * p.heads_k * p.d_v, 1.0),
    }
}

/// The arithmetic that a row is computed in.
trait Real: Copy + PartialOrd {
    fn of(x: f32) -> Self;
    fn mul_add_separately(self, a: Self, b: Self) -> Self; // self + a * b
    fn f64(self) -> f64;
    fn from_f64(x: f64) -> Self;
    fn exp_of_difference(self, largest: Self) -> Self;
    fn capped(self, cap: Self) -> Self;
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            fn of(x: f32) -> Self {
                <$type>::from(x)
            }
            fn mul_add_separately(self, a: Self, b: Self) -> Self {
                self + a * b
            }
            fn f64(self) -> f64 {
                f64::from(self)
            }
            fn from_f64(x: f64) -> Self {
                x as $type
            }
            fn exp_of_difference(self, largest: Self) -> Self {
                (self - largest).exp()
            }
            fn capped(self, cap: Self) -> Self {
                cap * (self / cap).tanh()
            }
        }
    };
}
real!(f32);
real!(f64);

pub struct Row {
    pub out: Vec<f64>,
    pub lse: f64,
    pub empty: bool,
}

struct Place {
    sequence: usize,
    head: usize,
    row: usize,
    first_q: usize,
    first_k: usize,
}

fn row_of<R: Real>(p: &Problem, data: &Data, at: &Place, round: impl Fn(f64) -> f64) -> Row {
    let (len_q, len_k) = p.used(at.sequence);
    let head_k = at.head / (p.heads_q / p.heads_k);
    let position = p.position(at.row, len_q, len_k);
    let q = &data.q[((at.first_q + at.row) * p.heads_q + at.head) * p.d..][..p.d];
    let scale = R::of(p.scale.unwrap_or(1.0 / (p.d as f32).sqrt()));
    let zero = R::of(0.0);
    let seen = p.seen(at.row, at.sequence);
    let mut scores: Vec<(usize, R)> = Vec::with_capacity(seen.len());
    for j in seen {
        let k = &data.k[((at.first_k + j) * p.heads_k + head_k) * p.d..][..p.d];
        let dot = q.iter().zip(k).fold(zero, |sum, (&a, &b)| sum.mul_add_separately(R::of(a), R::of(b)));
        let mut x = zero.mul_add_separately(dot, scale);
        if p.softcap > 0.0 {
            x = x.capped(R::of(p.softcap));
        }
        if let Some(&slope) = p.slopes.get(at.head) {
            x = x.mul_add_separately(R::of(-slope), R::of((position - j as i64).unsigned_abs() as f32));
        }
        let element =
            ((at.sequence * p.heads_q + at.head) * p.lengths[at.sequence].0 + at.row) * p.lengths[at.sequence].1 + j;
        if let Some(&bias) = p.bias.get(element) {
            if bias == f32::NEG_INFINITY {
                continue;
            }
            x = x.mul_add_separately(R::of(bias), R::of(1.0));
        }
        if p.mask.get(element) == Some(&false) {
            continue;
        }
        scores.push((j, x));
    }
    let sink = p.sinks.get(at.head).copied();
    let mut row = Row { out: vec![0.0; p.d_v], lse: sink.map_or(f64::NEG_INFINITY, f64::from), empty: true };
    if scores.is_empty() {
        return row;
    }
    row.empty = false;
    let start = R::of(sink.unwrap_or(f32::NEG_INFINITY));
    let largest = scores.iter().fold(start, |most, &(_, x)| if x > most { x } else { most });
    let mut sum = if sink.is_some() { start.exp_of_difference(largest) } else { zero };
    let mut out = vec![zero; p.d_v];
    for &(j, x) in &scores {
        let weight = x.exp_of_difference(largest);
        sum = sum.mul_add_separately(weight, R::of(1.0));
        let factor = R::from_f64(p.dropout_factor(at.sequence, at.head, at.row, j));
        let rounded = zero.mul_add_separately(R::from_f64(round(weight.f64())), factor);
        let v = &data.v[((at.first_k + j) * p.heads_k + head_k) * p.d_v..][..p.d_v];
        for (o, &v) in out.iter_mut().zip(v) {
            *o = o.mul_add_separately(rounded, R::of(v));
        }
    }
    let quotient = |o: R| R::from_f64(o.f64() / sum.f64()); // of two f32 in f64, rounded once: the same as in f32
    row.out = out.into_iter().map(|o| round(quotient(o).f64())).collect();
    row.lse = largest.f64() + sum.f64().ln();
    row
}

/// What the contract demands of a result: section 1.10. `out` [total_q, h_q, d_v], `lse` [h_q, total_q] or empty.
/// Rows `i` of `head` for which `chosen(sequence, head, i)` are judged.
pub fn judge(
    p: &Problem,
    data: &Data,
    out: &[f32],
    lse: &[f32],
    chosen: impl Fn(usize, usize, usize) -> bool,
) -> Result<(), String> {
    let mut errors = Errors::default();
    errors.collect(p, data, out, lse, chosen)?;
    errors.verdict()
}

impl Errors {
    /// Adds a problem's rows, of one type: tiny ones are judged together, for the largest of a few errors is chance.
    pub fn collect(
        &mut self,
        p: &Problem,
        data: &Data,
        out: &[f32],
        lse: &[f32],
        chosen: impl Fn(usize, usize, usize) -> bool,
    ) -> Result<(), String> {
        assert_eq!(out.len(), p.total_q() * p.heads_q * p.d_v, "the result's size");
        let (mut first_q, mut first_k) = (0, 0);
        for (sequence, &(len_q, len_k)) in p.lengths.iter().enumerate() {
            for head in 0..p.heads_q {
                for row in (0..p.used(sequence).0).filter(|&row| chosen(sequence, head, row)) {
                    let at = Place { sequence, head, row, first_q, first_k };
                    let oracle = row_of::<f64>(p, data, &at, |x| x);
                    let reference = row_of::<f32>(p, data, &at, |x| p.format.round(x));
                    let got = &out[((first_q + row) * p.heads_q + head) * p.d_v..][..p.d_v];
                    self.add(p.format, &at, got, &oracle, &reference)?;
                    if !lse.is_empty() {
                        check_lse(&at, f64::from(lse[head * p.total_q() + first_q + row]), oracle.lse)?;
                    }
                }
            }
            (first_q, first_k) = (first_q + len_q, first_k + len_k);
        }
        Ok(())
    }
}

pub fn every(_: usize, _: usize, _: usize) -> bool {
    true
}

fn check_lse(at: &Place, got: f64, oracle: f64) -> Result<(), String> {
    let right = if oracle.is_finite() { (got - oracle).abs() <= 2e-5 * (1.0 + oracle.abs()) } else { got == oracle };
    let Place { sequence, head, row, .. } = at;
    right.then_some(()).ok_or(format!("lse of sequence {sequence}, head {head}, row {row}: {got}, oracle {oracle}"))
}

/// Errors of the rows seen so far.
#[derive(Default)]
pub struct Errors {
    most: f64,
    most_of_reference: f64,
    rounding: f64,
    squares: f64,
    squares_of_reference: f64,
    squares_of_oracle: f64,
    rows_with_keys: usize,
    worst: String,
}

impl Errors {
    fn add(&mut self, format: Format, at: &Place, got: &[f32], oracle: &Row, reference: &Row) -> Result<(), String> {
        self.rows_with_keys += usize::from(!oracle.empty);
        for (c, ((&got, &oracle), &reference)) in got.iter().zip(&oracle.out).zip(&reference.out).enumerate() {
            let got = f64::from(got);
            let Place { sequence, head, row, .. } = at;
            let text = || {
                format!(
                    "sequence {sequence}, head {head}, row {row}, channel {c}: {got}, oracle {oracle}, reference {reference}"
                )
            };
            if !got.is_finite() || !reference.is_finite() {
                return Err(format!("not finite: {}", text()));
            }
            let (error, error_of_reference) = ((got - oracle).abs(), (reference - oracle).abs());
            if error > self.most {
                (self.most, self.worst) = (error, text());
            }
            self.most_of_reference = self.most_of_reference.max(error_of_reference);
            self.rounding = self.rounding.max((format.round(oracle) - oracle).abs());
            self.squares += error * error;
            self.squares_of_reference += error_of_reference * error_of_reference;
            self.squares_of_oracle += oracle * oracle;
        }
        Ok(())
    }

    pub fn verdict(&self) -> Result<(), String> {
        let limit = 2.0 * self.most_of_reference + self.rounding;
        if self.most > limit {
            return Err(format!("error {} > {limit}: {}", self.most, self.worst));
        }
        // With fewer rows the ratio of two norms says nothing that the maximum does not.
        if self.rows_with_keys >= 64 && self.squares.sqrt() > 1.2 * self.squares_of_reference.sqrt() {
            let norm = self.squares_of_oracle.sqrt();
            return Err(format!(
                "norm of the error {} > 1.2 * {} of the reference; worst: {}",
                self.squares.sqrt() / norm,
                self.squares_of_reference.sqrt() / norm,
                self.worst
            ));
        }
        Ok(())
    }
}

#[test]
fn formats_round_as_ieee_says() {
    for (format, x, rounded) in [
        (Format::F16, 2049.0, 2048.0),
        (Format::F16, 2051.0, 2052.0),
        (Format::F16, 65519.0, 65504.0),
        (Format::F16, 65520.0, f64::INFINITY),
        (Format::F16, 2f64.powi(-25) * 1.5, 2f64.powi(-24)),
        (Format::Bf16, 257.0, 256.0),
        (Format::Bf16, 259.0, 260.0),
        (Format::F32, 16777217.0, 16777216.0),
    ] {
        assert_eq!(format.round(x), rounded, "{format:?} {x}");
    }
    for format in [Format::Bf16, Format::F16] {
        for bits in (0..=u16::MAX).filter(|&bits| format.value(bits).is_finite()) {
            let value = format.value(bits);
            assert_eq!(format.bits(value), bits, "{format:?} {value}");
            assert_eq!(format.round_f32(value), value, "{format:?} {value}");
        }
    }
}
