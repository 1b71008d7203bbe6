"""Small models of every architecture of transformers, with random weights from a seed, and inputs that they take."""

import importlib
import inspect

import torch
import transformers
from transformers.models.auto import modeling_auto

ROWS = 24

LAYERS = ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth",
          "num_decoder_layers", "num_encoder_layers", "num_local_layers", "vision_layers"]  # fmt: skip
SMALL = {  # what a configuration is told, by the names of its numbers
    64: ["hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "emb_dim", "word_embed_proj_dim",
         "projection_dim", "hidden_dim", "width", "decoder_hidden_size", "out_hidden_size", "text_embed_dim",
         "lru_width", "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner",
         "mlp_dim", "n_ctx_dim", "ffn_hidden_size", "dense_ffn_hidden_size", "shared_intermediate_size",
         "encoder_embed_dim", "hidden_sizes_dim", "conv_dim_out", "query_dim", "backbone_dim", "dim_ff", "d_inner",
         "embedding_dim", "mlp_hidden_size", "hidden_size_per_layer_input", "dense_intermediate_size",
         "intermediate_size_mlp", "max_source_positions", "text_hidden_size", "projector_hidden_size",
         "backbone_hidden_size", "encoder_hidden_size", "feature_size_out"],
    32: ["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size", "image_size",
         "moe_shared_expert_intermediate_size", "num_mel_bins"],
    16: ["head_dim", "d_kv", "attention_head_dim", "v_head_dim", "qk_nope_head_dim", "kv_lora_rank", "q_lora_rank",
         "index_head_dim", "swa_head_dim", "swa_v_head_dim", "global_head_dim", "o_lora_rank", "mamba_d_head",
         "linear_key_head_dim", "linear_value_head_dim", "mamba_d_state", "mamba_head_dim", "ssm_state_size",
         "num_conv_pos_embeddings", "d_rel", "state_size"],
    8: ["qk_rope_head_dim", "sliding_window", "attention_chunk_size", "local_attention", "attention_window_size",
        "sliding_window_size", "patch_size", "keep_window_size", "window_length", "mamba_n_heads", "mamba_num_heads",
        "local_attention_size", "attention_context_size", "chunk_size"],
    4: ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
        "attention_heads", "n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "index_topk",
        "linear_num_key_heads", "linear_num_value_heads", "swa_num_attention_heads", "num_decoder_attention_heads",
        "num_encoder_attention_heads", "num_conv_pos_embedding_groups", "num_experts_routed"],
    2: ["num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_experts_per_tok", "moe_topk", "index_n_heads",
        "swa_num_key_value_heads", "num_experts_per_token", "moe_k", "top_k_experts", "num_global_key_value_heads",
        "encoder_num_key_value_heads", "decoder_num_key_value_heads", "num_selected_experts", "moe_top_k", "o_groups",
        "multi_query_group_num", "mamba_n_groups", "n_groups", *LAYERS],
    1: ["n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "num_shared_experts", "bos_token_id"],
    99: ["vocab_size", "vocab_size_per_layer_input", "text_vocab_size", "decoder_vocab_size"],
    0: ["pad_token_id"],
}  # fmt: skip
SMALL_OF = {name: value for value, names in SMALL.items() for name in names}
# Where that does not fit together, less of it is tried: no shared heads, then the default model with few layers.
FEWER = set(LAYERS) | set(SMALL[99]) | set(SMALL[1]) | {"sliding_window", "attention_chunk_size", "local_attention"}
FEWER |= {
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_experts_per_tok",
    "pad_token_id",
}
VARIANTS = {
    "small": SMALL_OF,
    "heads alike": {name: 4 if "key_value_heads" in name or "kv_heads" in name else n for name, n in SMALL_OF.items()},
    "few layers": {name: n for name, n in SMALL_OF.items() if name in FEWER},
}
MOST_PARAMETERS = 30_000_000
NEEDED = {"vocab_size", "n_routed_experts", "n_shared_experts", "head_dim", "num_key_value_heads"}  # none by default
EXACT = {"pad_token_id", "bos_token_id", "sliding_window"}  # set though they are smaller, or none, by default

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ROPE_332 = {**ROPE, "mrope_section": [3, 3, 2]}
MROPE = {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}}
HEADS_ALIKE = {"num_key_value_heads": 4}
OWN = {  # what an architecture, or a part of one, needs besides
    "deepseek_v2": {**HEADS_ALIKE, "head_dim": 8, "topk_method": "greedy", "num_experts_per_tok": 2},
    "glm5_next_text": {**HEADS_ALIKE, "index_topk": 2048},
    "diffusion_gemma_text": {"moe_intermediate_size": 32, "num_experts": 4, "top_k_experts": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE_332, "sliding_attention": ROPE_332}},
    "ernie4_5_vl_moe_text": {"rope_parameters": ROPE_332},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4": {"pad_token_id": 0},
    "glm4v_moe_text": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
    "glm_image_text": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}},
    "dots1": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "emu3_text_model": {"pad_token_id": 0},
    "emu3": {"pad_token_id": 0},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "qwen2_vl_text": MROPE,
    "qwen2_5_vl_text": MROPE,
    "qwen3_vl_text": MROPE,
    "qwen3_vl_moe_text": MROPE,
    "paddleocr_vl_text": MROPE,
    "glm4v_text": MROPE,
    "glm_ocr_text": MROPE,
    "phimoe": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "olmoe": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2_moe": {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
}  # fmt: skip


# ---- Small models ----------------------------------------------------------------------------------------------------


def scaled(section, total=8):
    """mrope's sections, of half a head's numbers."""
    first = total // len(section)
    return [total - first * (len(section) - 1)] + [first] * (len(section) - 1)


def kept_layers(default):
    """Indices of layers, one of each kind in order, at least two."""
    kinds = getattr(default, "layer_types", None) or getattr(default, "layers_block_type", None)
    if not isinstance(kinds, (list, tuple)) or not kinds:
        return [0, 1]
    kept = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return kept if len(kept) > 1 else [0, min(1, len(kinds) - 1)]


def is_to_change(name, value, number):
    if value is None:
        return name in EXACT or name in NEEDED
    return isinstance(value, int) and not isinstance(value, bool) and (value > number or name in EXACT)


def small_arguments(config_class, own, variant):
    """Keyword arguments that make a small configuration, subconfigurations included."""
    default = config_class()
    values = default.to_dict()
    kept = kept_layers(default)
    count = next((values[name] for name in LAYERS if isinstance(values.get(name), int)), None)
    numbers = VARIANTS[variant]
    arguments = {}
    for name, value in values.items():
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if name in config_class.sub_configs and isinstance(value, dict):
            arguments[name] = small_part(config_class, default, name, variant)
        elif name in LAYERS and is_number:
            arguments[name] = len(kept)
        elif name == "max_position_embeddings" and isinstance(value, int) and value < 64:
            arguments[name] = 64
        elif name in numbers and is_to_change(name, value, numbers[name]):
            arguments[name] = numbers[name]
        elif isinstance(value, (list, tuple)) and len(value) == count and count > 2:
            arguments[name] = [value[i] for i in kept]
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "mrope_section" in value:
            arguments[name] = {**value, "mrope_section": scaled(value["mrope_section"])}
    if "sliding_window" in arguments and values.get("sliding_window") is None:
        del arguments["sliding_window"]  # a model that has none by default takes it from OWN
    if "qk_rope_head_dim" in arguments and "head_dim" in arguments:
        arguments["head_dim"] = arguments["qk_rope_head_dim"]
    for name in ("eos_token_id", "decoder_start_token_id"):
        if name in values:
            arguments[name] = 2
    return {**arguments, **own}


def small_part(config_class, default, name, variant):
    part = type(getattr(default, name))
    if not part.model_type:
        return getattr(default, name)
    arguments = small_arguments(part, OWN.get(part.model_type, {}), variant)
    if config_class.sub_configs[name] is transformers.AutoConfig:
        arguments["model_type"] = part.model_type
    return arguments


def class_of(model_type, config_class):
    for names in (
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
    ):
        if model_type in names:
            name = names[model_type]
            return getattr(transformers, name if isinstance(name, str) else name[0])
    module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    models = [
        model
        for model in vars(module).values()
        if inspect.isclass(model) and issubclass(model, transformers.PreTrainedModel)
        if model.config_class is config_class and not model.__name__.endswith("PreTrainedModel")
    ]
    return min(models, key=lambda model: len(model.__name__), default=None)


def small_model(model_class, config_class, own, variant, implementation):
    torch.manual_seed(0)
    config = config_class(**small_arguments(config_class, own, variant))
    if variant == "few layers":
        with torch.device("meta"):
            size = sum(x.numel() for x in model_class._from_config(config, attn_implementation="eager").parameters())
        if size > MOST_PARAMETERS:
            raise MemoryError(f"{size} parameters with few layers")
        config = config_class(**small_arguments(config_class, own, variant))
    model = model_class._from_config(config, attn_implementation=implementation).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:  # sharp enough that the attention matters
                spread = 1.2 * min(parameter.shape[-1], 4096) ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            elif "sink" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.requires_grad_(False)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


# ---- Inputs ----------------------------------------------------------------------------------------------------------


def find(config, name, otherwise):
    for part in (config, *(getattr(config, sub, None) for sub in config.sub_configs)):
        value = getattr(part, name, None)
        if value is not None:
            return value[0] if isinstance(value, (list, tuple)) else value
    return otherwise


def candidates(model):
    """Inputs that a model may take; the first that "eager" takes are used."""
    generator = torch.Generator().manual_seed(2)
    config = model.config
    vocabulary = min(find(config, "vocab_size", 99), 99)
    ids = torch.randint(3, vocabulary, (2, ROWS), generator=generator) if vocabulary > 4 else None
    size, channels, frames = (
        find(config, "image_size", 32),
        find(config, "num_channels", 3),
        find(config, "num_frames", 4),
    )
    image = torch.randn(2, channels, size, size, generator=generator)
    takes = inspect.signature(model.forward).parameters
    text = {"input_ids": ids}
    if "decoder_input_ids" in takes:
        yield {**text, "decoder_input_ids": ids.flip(1)}
    if "input_ids" in takes:
        yield text
    if "bbox" in takes:
        yield {**text, "bbox": torch.zeros(2, ROWS, 8 if "bros" in config.model_type else 4, dtype=torch.int64)}
    if "grid_thw" in takes:
        patch = channels * find(config, "temporal_patch_size", 1) * find(config, "patch_size", 8) ** 2
        first = next(iter(takes))
        yield {first: torch.randn(16, patch, generator=generator), "grid_thw": torch.tensor([[1, 4, 4]])}
    if "pixel_values" in takes:
        yield {"pixel_values": image}
        if "input_ids" in takes:
            yield {**text, "pixel_values": image}
        yield {"pixel_values": torch.randn(2, frames, channels, size, size, generator=generator)}
    if "pixel_values_videos" in takes:
        yield {"pixel_values_videos": torch.randn(2, frames, channels, size, size, generator=generator)}
    if "input_values" in takes:
        sound = torch.randn(2, 4000, generator=generator)
        yield {"input_values": sound, **({"decoder_input_ids": ids} if "decoder_input_ids" in takes else {})}
        yield {"input_values": torch.randn(2, 1, 4000, generator=generator)}
        shape = 2, find(config, "max_length", 64), find(config, "num_mel_bins", 32)
        yield {"input_values": torch.randn(shape, generator=generator)}
    if "input_features" in takes:
        mels = find(config, "num_mel_bins", 32)
        sound = torch.randn(2, mels, 2 * find(config, "max_source_positions", 64), generator=generator)
        yield {"input_features": sound, **({"decoder_input_ids": ids} if "decoder_input_ids" in takes else {})}
        sound = torch.randn(2, 64, mels, generator=generator)
        yield {"input_features": sound, **({"decoder_input_ids": ids} if "decoder_input_ids" in takes else {})}
        if "input_features_mask" in takes:
            masks = torch.ones(2, 64, dtype=torch.bool)
            yield {"input_features": torch.randn(2, mels, 64, generator=generator), "input_features_mask": masks}
    if "inputs_embeds" in takes:
        yield {"inputs_embeds": torch.randn(2, ROWS, find(config, "hidden_size", 64), generator=generator)}
    if "hidden_states" in takes:
        yield {"hidden_states": torch.randn(2, ROWS, find(config, "hidden_size", 64), generator=generator)}
