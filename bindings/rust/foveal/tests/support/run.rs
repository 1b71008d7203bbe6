//! Problems through the crate: memory of the problem's type, [s, h, d] in some order of the dimensions.

use crate::support::{Data, Format, Problem};
use foveal::{Alignment, Bf16, Forward, Result, Stream, Tensor, TensorMut, F16};

/// Values of a type in memory.
pub enum Buffer {
    F32(Vec<f32>),
    Half(Format, Vec<u16>),
}

impl Buffer {
    pub fn new(format: Format, values: &[f32]) -> Self {
        match format {
            Format::F32 => Buffer::F32(values.to_vec()),
            _ => Buffer::Half(format, values.iter().map(|&x| format.bits(x)).collect()),
        }
    }

    pub fn view(&self, shape: &[usize], strides: &[usize]) -> Result<Tensor<'_>> {
        match self {
            Buffer::F32(data) => Tensor::strided(data, shape, strides),
            Buffer::Half(Format::Bf16, bits) => Tensor::strided(Bf16::slice(bits), shape, strides),
            Buffer::Half(_, bits) => Tensor::strided(F16::slice(bits), shape, strides),
        }
    }

    pub fn view_mut(&mut self, shape: &[usize], strides: &[usize]) -> Result<TensorMut<'_>> {
        match self {
            Buffer::F32(data) => TensorMut::strided(data, shape, strides),
            Buffer::Half(Format::Bf16, bits) => TensorMut::strided(Bf16::slice_mut(bits), shape, strides),
            Buffer::Half(_, bits) => TensorMut::strided(F16::slice_mut(bits), shape, strides),
        }
    }

    pub fn values(&self) -> Vec<f32> {
        match self {
            Buffer::F32(data) => data.clone(),
            Buffer::Half(format, bits) => bits.iter().map(|&bits| format.value(bits)).collect(),
        }
    }
}

/// Where [rows, heads, channels] lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    RowsFirst,
    HeadsFirst,
    Padded, // rows first, with 3 unused elements behind each head's channels
}

impl Order {
    /// Shape and strides of [b, s, h, c], or of [s, h, c] if there is no b; and the elements of the buffer.
    pub fn layout(self, b: Option<usize>, s: usize, h: usize, c: usize) -> (Vec<usize>, Vec<usize>, usize) {
        let c_padded = if self == Order::Padded { c + 3 } else { c };
        let (row, head) = if self == Order::HeadsFirst { (c, s.max(1) * c) } else { (h * c_padded, c_padded) };
        let batch = s.max(1) * h * c_padded;
        match b {
            Some(b) => (vec![b, s, h, c], vec![batch, row, head, 1], b * batch),
            None => (vec![s, h, c], vec![row, head, 1], batch),
        }
    }

    /// Values in row-major order into the buffer's.
    pub fn scatter(self, values: &[f32], b: usize, s: usize, h: usize, c: usize) -> Vec<f32> {
        let (_, strides, size) = self.layout(Some(b), s, h, c);
        let mut buffer = vec![f32::NAN; size];
        self.each(b, s, h, c, |n, at| buffer[at] = values[n], &strides);
        buffer
    }

    pub fn gather(self, buffer: &[f32], b: usize, s: usize, h: usize, c: usize) -> Vec<f32> {
        let (_, strides, _) = self.layout(Some(b), s, h, c);
        let mut values = vec![0.0; b * s * h * c];
        self.each(b, s, h, c, |n, at| values[n] = buffer[at], &strides);
        values
    }

    fn each(self, b: usize, s: usize, h: usize, c: usize, mut f: impl FnMut(usize, usize), strides: &[usize]) {
        let mut n = 0;
        for b in 0..b {
            for s in 0..s {
                for h in 0..h {
                    for c in 0..c {
                        f(n, b * strides[0] + s * strides[1] + h * strides[2] + c);
                        n += 1;
                    }
                }
            }
        }
    }
}

/// The offsets of sequences of these lengths.
pub fn cumulated(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let mut sums = vec![0];
    for length in lengths {
        sums.push(sums[sums.len() - 1] + length as i32);
    }
    sums
}

/// out [total_q, h_q, d_v] and lse [h_q, total_q], both poisoned before.
pub fn run(p: &Problem, data: &Data, varlen: bool, order: Order) -> Result<(Vec<f32>, Vec<f32>)> {
    let batch = p.lengths.len();
    let (b, s_q, s_k) =
        if varlen { (None, p.total_q(), p.total_k()) } else { (Some(batch), p.lengths[0].0, p.lengths[0].1) };
    let n = b.unwrap_or(1);
    let input =
        |values: &[f32], s: usize, h: usize, c: usize| Buffer::new(p.format, &order.scatter(values, n, s, h, c));
    let (q, k, v) = (
        input(&data.q, s_q, p.heads_q, p.d),
        input(&data.k, s_k, p.heads_k, p.d),
        input(&data.v, s_k, p.heads_k, p.d_v),
    );
    let (out_shape, out_strides, out_size) = order.layout(b, s_q, p.heads_q, p.d_v);
    let mut out = Buffer::new(p.format, &vec![f32::NAN; out_size]);
    let mut lse = vec![f32::NAN; p.total_q() * p.heads_q];
    let lse_shape: &[usize] = if varlen { &[p.heads_q, s_q] } else { &[batch, p.heads_q, s_q] };
    let (offsets_q, offsets_k) = (cumulated(p.lengths.iter().map(|l| l.0)), cumulated(p.lengths.iter().map(|l| l.1)));
    let used_q: Vec<i32> = p.used.iter().map(|u| u.0 as i32).collect();
    let used_k: Vec<i32> = p.used.iter().map(|u| u.1 as i32).collect();
    let layout_q = order.layout(b, s_q, p.heads_q, p.d);
    let layout_k = order.layout(b, s_k, p.heads_k, p.d);
    let layout_v = order.layout(b, s_k, p.heads_k, p.d_v);
    let mut call = Forward::new(
        q.view(&layout_q.0, &layout_q.1)?,
        k.view(&layout_k.0, &layout_k.1)?,
        v.view(&layout_v.0, &layout_v.1)?,
        out.view_mut(&out_shape, &out_strides)?,
    )
    .lse(TensorMut::new(&mut lse, lse_shape)?)
    .window(p.left, p.right)
    .chunk(p.chunk)
    .softcap(p.softcap)
    .alignment(if p.top_left { Alignment::TopLeft } else { Alignment::BottomRight });
    if varlen {
        call = call.cu_seqlens(Tensor::new(&offsets_q, &[batch + 1])?, Tensor::new(&offsets_k, &[batch + 1])?);
    }
    if let Some(scale) = p.scale {
        call = call.scale(scale);
    }
    if !p.used.is_empty() {
        call = call.seqused_q(Tensor::new(&used_q, &[batch])?).seqused_k(Tensor::new(&used_k, &[batch])?);
    }
    if !p.slopes.is_empty() {
        call = call.alibi_slopes(Tensor::new(&p.slopes, &[p.heads_q])?);
    }
    if !p.sinks.is_empty() {
        call = call.sinks(Tensor::new(&p.sinks, &[p.heads_q])?);
    }
    let scores = [batch, p.heads_q, s_q, s_k];
    if !p.bias.is_empty() {
        call = call.bias(Tensor::new(&p.bias, &scores)?);
    }
    if !p.mask.is_empty() {
        call = call.mask(Tensor::new(&p.mask, &scores)?);
    }
    call.supports()?;
    call.run(Stream::none())?;
    drop(call);
    let out = order.gather(&out.values(), n, s_q, p.heads_q, p.d_v);
    let lse = if varlen {
        lse
    } else {
        // [b, h, s] to [h, b, s]
        let mut turned = vec![0.0; lse.len()];
        for b in 0..batch {
            for h in 0..p.heads_q {
                for i in 0..s_q {
                    turned[(h * batch + b) * s_q + i] = lse[(b * p.heads_q + h) * s_q + i];
                }
            }
        }
        turned
    };
    Ok((out, lse))
}
