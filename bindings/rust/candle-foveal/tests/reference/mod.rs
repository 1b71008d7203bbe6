//! Gradients written down as the contract states them (1.13), row by row: in float64 (the oracle), and with every
//! operation rounded as the textbook does it in the input's own precision (the reference of 1.10). Shares nothing with the
//! library but the result and the log-sum-exp of the forward pass, of which the gradients are.

#![allow(dead_code)] // each test takes what it needs

use crate::support::{Data, Problem};

/// What the forward pass left, and what comes in: out and dout [total_q, h_q, d_v], lse and dlse [h_q, total_q].
pub struct Kept {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub dout: Vec<f32>,
    pub dlse: Vec<f32>,
}

/// dq, dk, dv; then dsinks, dbias and dslopes, each element in four orders of summation.
pub struct Gradients {
    pub rows: [Vec<f64>; 3],
    pub others: [[Vec<f64>; 4]; 3],
}

/// How numbers are rounded: each operation, and what is stored.
pub struct Rounding<'r> {
    pub each: &'r dyn Fn(f64) -> f64,
    pub stored: &'r dyn Fn(f64) -> f64,
}

struct Sums<'a> {
    p: &'a Problem,
    data: &'a Data,
    kept: &'a Kept,
    rounding: &'a Rounding<'a>,
    rows: [Vec<f64>; 3],
    terms: [Vec<Vec<f64>>; 3],
}

struct Row {
    sequence: usize,
    head: usize,
    row: usize,
    first_q: usize,
    first_k: usize,
}

impl Sums<'_> {
    fn dot(&self, a: &[f32], b: &[f32]) -> f64 {
        let each = self.rounding.each;
        a.iter().zip(b).fold(0.0, |sum, (&a, &b)| each(sum + each(f64::from(a) * f64::from(b))))
    }

    fn add_scaled(&mut self, which: usize, at: usize, factor: f64, values: &[f32]) {
        let each = self.rounding.each;
        for (sum, &value) in self.rows[which][at..].iter_mut().zip(values) {
            *sum = each(*sum + each(factor * f64::from(value)));
        }
    }

    /// The score behind softcap, slopes and bias, and the derivative of the softcap.
    fn score(&self, at: &Row, q: &[f32], k: &[f32], j: usize) -> (f64, f64) {
        let (p, each) = (self.p, self.rounding.each);
        let mut x = each(self.dot(q, k) * self.scale());
        let mut slope_of_cap = 1.0;
        if p.softcap > 0.0 {
            let t = each(each(x / f64::from(p.softcap)).tanh());
            (x, slope_of_cap) = (each(f64::from(p.softcap) * t), each(1.0 - each(t * t)));
        }
        if let Some(&slope) = p.slopes.get(at.head) {
            x = each(x - each(f64::from(slope) * self.distance(at, j)));
        }
        if let Some(&bias) = p.bias.get(self.element(at, j)) {
            x = each(x + f64::from(bias));
        }
        (x, slope_of_cap)
    }

    fn scale(&self) -> f64 {
        f64::from(self.p.scale.unwrap_or(1.0 / (self.p.d as f32).sqrt()))
    }

    fn distance(&self, at: &Row, j: usize) -> f64 {
        let (len_q, len_k) = self.p.used(at.sequence);
        (self.p.position(at.row, len_q, len_k) - j as i64).unsigned_abs() as f64
    }

    fn element(&self, at: &Row, j: usize) -> usize {
        let (len_q, len_k) = self.p.lengths[at.sequence];
        ((at.sequence * self.p.heads_q + at.head) * len_q + at.row) * len_k + j
    }

    fn add_row(&mut self, at: &Row) {
        let (p, data, kept, rounding) = (self.p, self.data, self.kept, self.rounding);
        let (each, stored) = (rounding.each, rounding.stored);
        let place = at.head * p.total_q() + at.first_q + at.row;
        let lse = f64::from(kept.lse[place]);
        if lse == f64::NEG_INFINITY {
            return;
        }
        let row_q = (at.first_q + at.row) * p.heads_q + at.head;
        let (q, out, dout) =
            (&data.q[row_q * p.d..][..p.d], &kept.out[row_q * p.d_v..][..p.d_v], &kept.dout[row_q * p.d_v..][..p.d_v]);
        let delta = each(self.dot(dout, out) - f64::from(kept.dlse[place]));
        if let Some(&sink) = p.sinks.get(at.head) {
            self.terms[0][at.head].push(-each(each(each(f64::from(sink) - lse).exp()) * delta));
        }
        for j in p.seen(at.row, at.sequence) {
            if p.mask.get(self.element(at, j)) == Some(&false) {
                continue;
            }
            let row_k = (at.first_k + j) * p.heads_k + at.head / (p.heads_q / p.heads_k);
            let (k, v) = (&data.k[row_k * p.d..][..p.d], &data.v[row_k * p.d_v..][..p.d_v]);
            let (x, slope_of_cap) = self.score(at, q, k, j);
            let weight = each(each(x - lse).exp());
            let factor = each(p.dropout_factor(at.sequence, at.head, at.row, j));
            let dx = each(weight * each(each(factor * self.dot(dout, v)) - delta));
            let ds = stored(each(each(dx * slope_of_cap) * self.scale()));
            self.add_scaled(0, row_q * p.d, ds, k);
            self.add_scaled(1, row_k * p.d, ds, q);
            self.add_scaled(2, row_k * p.d_v, each(stored(weight) * factor), dout);
            if !p.bias.is_empty() {
                let element = self.element(at, j);
                self.terms[1][element].push(dx);
            }
            if !p.slopes.is_empty() {
                let term = -each(dx * self.distance(at, j));
                self.terms[2][at.head].push(term);
            }
        }
    }

    fn in_four_orders(&self, terms: &[Vec<f64>]) -> [Vec<f64>; 4] {
        let each = self.rounding.each;
        let sum = |order: &mut dyn Iterator<Item = f64>| order.fold(0.0, |sum, x| each(sum + x));
        let of = |f: &dyn Fn(&[f64]) -> f64| terms.iter().map(|terms| f(terms)).collect();
        [
            of(&|t| sum(&mut t.iter().copied())),
            of(&|t| sum(&mut t.iter().rev().copied())),
            of(&|t| each(sum(&mut t.iter().step_by(2).copied()) + sum(&mut t.iter().skip(1).step_by(2).copied()))),
            of(&|t| {
                let (a, b) = t.split_at(t.len() / 2);
                each(sum(&mut a.iter().copied()) + sum(&mut b.iter().copied()))
            }),
        ]
    }
}

pub fn gradients(p: &Problem, data: &Data, kept: &Kept, rounding: &Rounding<'_>) -> Gradients {
    let (sinks, slopes) = (p.sinks.len(), p.slopes.len());
    let mut sums = Sums {
        p,
        data,
        kept,
        rounding,
        rows: [vec![0.0; data.q.len()], vec![0.0; data.k.len()], vec![0.0; data.v.len()]],
        terms: [vec![vec![]; sinks], vec![vec![]; p.bias.len()], vec![vec![]; slopes]],
    };
    let (mut first_q, mut first_k) = (0, 0);
    for (sequence, &(len_q, len_k)) in p.lengths.iter().enumerate() {
        for head in 0..p.heads_q {
            for row in 0..p.used(sequence).0 {
                sums.add_row(&Row { sequence, head, row, first_q, first_k });
            }
        }
        (first_q, first_k) = (first_q + len_q, first_k + len_k);
    }
    let others = [0, 1, 2].map(|which| sums.in_four_orders(&sums.terms[which]));
    let rows = sums.rows.map(|values| values.into_iter().map(rounding.stored).collect());
    Gradients { rows, others }
}

/// The ratio of two norms has as many degrees of freedom as there are rows, or fewer: of a gradient a few rows with large
/// weights make most of the error. With fewer than this it says nothing that the maximum does not, as in C++'s tests.
const LEAST_ROWS_FOR_NORM: usize = 256;

/// Sums over rows have few elements: their norm says nothing that their maximum does not.
pub const ROWS_OF_SUMS: usize = 1;

/// The contract's tolerance (1.10): `rounding` is that of the oracle to the type of what was got, which are gradients of
/// `rows` rows, or sums over so many.
pub fn judge(
    name: &str,
    rows: usize,
    got: &[f32],
    oracle: &[f64],
    references: &[&[f64]],
    rounding: impl Fn(f64) -> f64,
) -> Result<(), String> {
    if got.len() != oracle.len() {
        return Err(format!("{name} has {} elements, the oracle {}", got.len(), oracle.len()));
    }
    let most = |errors: &mut dyn Iterator<Item = f64>| errors.fold(0.0, f64::max);
    let norm = |values: &[f64]| values.iter().zip(oracle).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    if let Some(n) = got.iter().position(|x| !x.is_finite()) {
        return Err(format!("{name}[{n}] is {}", got[n]));
    }
    let got: Vec<f64> = got.iter().map(|&x| f64::from(x)).collect();
    let of_reference = most(&mut references.iter().flat_map(|r| r.iter().zip(oracle)).map(|(a, b)| (a - b).abs()));
    let limit = 2.0 * of_reference + most(&mut oracle.iter().map(|&x| (rounding(x) - x).abs()));
    let error = most(&mut got.iter().zip(oracle).map(|(a, b)| (a - b).abs()));
    if error > limit {
        return Err(format!("{name}: error {error} > {limit}"));
    }
    let norm_of_reference = references.iter().map(|r| norm(r)).fold(0.0, f64::max);
    if rows >= LEAST_ROWS_FOR_NORM && norm(&got) > 1.2 * norm_of_reference {
        return Err(format!("{name}: norm of the error {} > 1.2 * {norm_of_reference}", norm(&got)));
    }
    Ok(())
}
