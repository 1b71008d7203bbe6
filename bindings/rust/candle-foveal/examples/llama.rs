//! A small Llama of random weights, twice: candle-transformers' own, and one of the same weights whose attention is
//! candle-foveal's, over a cache of keys and values that is never repeated for grouped heads. Both choose the same
//! tokens.
//!
//! `cargo run --example llama`; with the feature `cuda`, `-- --cuda` runs both on the first GPU, in bf16.

use std::time::Instant;

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor};
use candle_foveal::candle_flash_attn_v3::flash_attn;
use candle_nn::{embedding, linear_no_bias, rms_norm, Embedding, Linear, RmsNorm, VarBuilder, VarMap};
use candle_transformers::models::llama::{Cache, Config, Llama};

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    cache: Option<(Tensor, Tensor)>, // [b, s, h_k, d]
}

impl Attention {
    fn load(vb: VarBuilder<'_>, c: &Config) -> Result<Self> {
        let head_dim = c.hidden_size / c.num_attention_heads;
        let kv = head_dim * c.num_key_value_heads;
        Ok(Self {
            q: linear_no_bias(c.hidden_size, c.hidden_size, vb.pp("q_proj"))?,
            k: linear_no_bias(c.hidden_size, kv, vb.pp("k_proj"))?,
            v: linear_no_bias(c.hidden_size, kv, vb.pp("v_proj"))?,
            o: linear_no_bias(c.hidden_size, c.hidden_size, vb.pp("o_proj"))?,
            heads: c.num_attention_heads,
            heads_kv: c.num_key_value_heads,
            head_dim,
            cache: None,
        })
    }

    fn forward(&mut self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (b, s, hidden) = x.dims3()?;
        let q = self.q.forward(x)?.reshape((b, s, self.heads, self.head_dim))?;
        let k = self.k.forward(x)?.reshape((b, s, self.heads_kv, self.head_dim))?;
        let v = self.v.forward(x)?.reshape((b, s, self.heads_kv, self.head_dim))?;
        let (q, k) = (candle_nn::rotary_emb::rope_thd(&q, cos, sin)?, candle_nn::rotary_emb::rope_thd(&k, cos, sin)?);
        let (k, v) = match &self.cache {
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, &k], 1)?, Tensor::cat(&[old_v, &v], 1)?),
            None => (k, v),
        };
        // Causal is bottom-right: the last query sees every key, in prefill and in decoding.
        let scale = 1. / (self.head_dim as f32).sqrt();
        let out = flash_attn(&q, &k, &v, scale, true, true)?;
        self.cache = Some((k, v));
        self.o.forward(&out.reshape((b, s, hidden))?)
    }
}

struct Block {
    norm: RmsNorm,
    attention: Attention,
    norm_of_mlp: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    fn load(vb: VarBuilder<'_>, c: &Config) -> Result<Self> {
        let mlp = vb.pp("mlp");
        Ok(Self {
            norm: rms_norm(c.hidden_size, c.rms_norm_eps, vb.pp("input_layernorm"))?,
            attention: Attention::load(vb.pp("self_attn"), c)?,
            norm_of_mlp: rms_norm(c.hidden_size, c.rms_norm_eps, vb.pp("post_attention_layernorm"))?,
            gate: linear_no_bias(c.hidden_size, c.intermediate_size, mlp.pp("gate_proj"))?,
            up: linear_no_bias(c.hidden_size, c.intermediate_size, mlp.pp("up_proj"))?,
            down: linear_no_bias(c.intermediate_size, c.hidden_size, mlp.pp("down_proj"))?,
        })
    }

    fn forward(&mut self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let x = (self.attention.forward(&self.norm.forward(x)?, cos, sin)? + x)?;
        let y = self.norm_of_mlp.forward(&x)?;
        let y = (candle_nn::ops::silu(&self.gate.forward(&y)?)? * self.up.forward(&y)?)?;
        self.down.forward(&y)? + x
    }
}

struct FovealLlama {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    cos: Tensor, // [positions, d/2]
    sin: Tensor,
}

impl FovealLlama {
    fn load(vb: VarBuilder<'_>, c: &Config) -> Result<Self> {
        let model = vb.pp("model");
        let half = c.hidden_size / c.num_attention_heads / 2;
        let rates: Vec<f32> = (0..half).map(|i| 1. / c.rope_theta.powf(i as f32 / half as f32)).collect();
        let positions = Tensor::arange(0u32, c.max_position_embeddings as u32, vb.device())?.to_dtype(DType::F32)?;
        let angles = positions.unsqueeze(1)?.matmul(&Tensor::new(rates, vb.device())?.unsqueeze(0)?)?;
        Ok(Self {
            embedding: embedding(c.vocab_size, c.hidden_size, model.pp("embed_tokens"))?,
            blocks: (0..c.num_hidden_layers)
                .map(|n| Block::load(model.pp(format!("layers.{n}")), c))
                .collect::<Result<_>>()?,
            norm: rms_norm(c.hidden_size, c.rms_norm_eps, model.pp("norm"))?,
            head: linear_no_bias(c.hidden_size, c.vocab_size, vb.pp("lm_head"))?,
            cos: angles.cos()?.to_dtype(vb.dtype())?,
            sin: angles.sin()?.to_dtype(vb.dtype())?,
        })
    }

    /// Logits of the last token, [b, vocabulary].
    fn forward(&mut self, tokens: &Tensor, position: usize) -> Result<Tensor> {
        let s = tokens.dim(1)?;
        let (cos, sin) = (self.cos.narrow(0, position, s)?, self.sin.narrow(0, position, s)?);
        let mut x = self.embedding.forward(tokens)?;
        for block in &mut self.blocks {
            x = block.forward(&x, &cos, &sin)?;
        }
        self.head.forward(&self.norm.forward(&x)?.i((.., s - 1, ..))?.contiguous()?)?.to_dtype(DType::F32)
    }
}

/// The tokens that follow `prompt`, each the likeliest.
fn greedy(
    prompt: &[u32],
    count: usize,
    device: &Device,
    mut logits: impl FnMut(&Tensor, usize) -> Result<Tensor>,
) -> Result<Vec<u32>> {
    let (mut tokens, mut next) = (Vec::new(), prompt.to_vec());
    let mut position = 0;
    while tokens.len() < count {
        let input = Tensor::new(next.as_slice(), device)?.unsqueeze(0)?;
        let token = logits(&input, position)?.i(0)?.argmax(0)?.to_scalar::<u32>()?;
        position += next.len();
        next = vec![token];
        tokens.push(token);
    }
    Ok(tokens)
}

/// Weights that are the same on every run: of the size that keeps activations about 1.
fn fill(weights: &VarMap) -> Result<()> {
    let data = weights.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut names: Vec<_> = data.keys().collect();
    names.sort();
    let mut state = 1u64;
    for name in names {
        let var = &data[name];
        let deviation = if name.ends_with("embed_tokens.weight") {
            1.
        } else {
            1. / (var.dims()[1.min(var.rank() - 1)] as f32).sqrt()
        };
        let values: Vec<f32> = (0..var.elem_count())
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); // Knuth's
                ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt() * deviation
            })
            .collect();
        if !name.contains("norm") {
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?.to_dtype(var.dtype())?)?;
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let on_gpu = std::env::args().any(|argument| argument == "--cuda");
    let (device, dtype) = if on_gpu { (Device::new_cuda(0)?, DType::BF16) } else { (Device::Cpu, DType::F32) };
    let config = Config {
        hidden_size: 256,
        intermediate_size: 512,
        vocab_size: 1000,
        num_hidden_layers: 3,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 256,
        tie_word_embeddings: false,
    };
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, dtype, &device);
    drop(Llama::load(vb.clone(), &config)?); // names the weights
    fill(&weights)?;
    let candle = Llama::load(vb.clone(), &config)?;
    let mut ours = FovealLlama::load(vb, &config)?;

    let prompt: Vec<u32> = (0..40).map(|n| (n * 37 + 11) % 1000).collect();
    let started = Instant::now();
    let mut cache = Cache::new(true, dtype, &config, &device)?;
    let expected = greedy(&prompt, 24, &device, |tokens, position| candle.forward(tokens, position, &mut cache))?;
    let after_candle = started.elapsed();
    let got = greedy(&prompt, 24, &device, |tokens, position| ours.forward(tokens, position))?;
    println!("candle's attention  {after_candle:.1?}  {expected:?}");
    println!("candle-foveal       {:.1?}  {got:?}", started.elapsed() - after_candle);
    if got != expected {
        candle_core::bail!("the tokens differ")
    }
    println!("the same tokens");
    Ok(())
}
