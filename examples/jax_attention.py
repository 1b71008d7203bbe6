"""foveal.jax: under jit and vmap, in foveal's own meaning and in that of jax.nn.dot_product_attention."""

import foveal.jax
import jax
import jax.numpy as jnp

keys = jax.random.split(jax.random.key(0), 3)
q = jax.random.normal(keys[0], (3, 2, 16, 8, 32))  # [mapped, b, s, heads, d]
k, v = (jax.random.normal(key, (3, 2, 16, 2, 32)) for key in keys[1:])


def layer(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return foveal.jax.attention(q, k, v, causal=True) * 2


out = jax.jit(jax.vmap(layer))(q, k, v)
own: jax.Array = foveal.jax.dot_product_attention(q[0], k[0], v[0], is_causal=True)
print(out.shape, bool(jnp.allclose(out[0], own * 2, atol=1e-5)))
