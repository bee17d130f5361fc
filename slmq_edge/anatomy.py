"""Anatomy: a decoder architecture described once, as data, and read from its ``config.json``.

Every method, the simulation and every exporter walk a model by these names:

    tokens -> embed_tokens -> [ block ] x layers -> norm -> lm_head
    block:  x + o_proj(attention(q, k, v of input_layernorm(x)))
            x + down_proj(silu(gate) * up      of post_attention_layernorm(x))

In some families every head of q and of k passes a norm before rotary embedding: q_norm, k_norm.
Names are Hugging Face's. An unknown architecture is an error, never a guess.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slmq_edge.errors import Unsupported, unknown

EMBED = "model.embed_tokens"
NORM = "model.norm"
HEAD = "lm_head"
# A tied table serves two bases: the stream is rotated after the lookup and back before the head.
EMBED_ROTATION = "model.embed_rotation"
HEAD_ROTATION = "model.head_rotation"

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
Q, K, V = QKV
O = "self_attn.o_proj"  # noqa: E741  the field's name for it
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"
LINEARS = (*QKV, O, *GATE_UP, DOWN)
Q_NORM, K_NORM = "self_attn.q_norm", "self_attn.k_norm"


@dataclass(frozen=True)
class Feed:
    """A norm and the linears that all read its output."""

    norm: str
    linears: tuple[str, ...]


ATTENTION_FEED = Feed("input_layernorm", QKV)
MLP_FEED = Feed("post_attention_layernorm", GATE_UP)
FEEDS = (ATTENTION_FEED, MLP_FEED)


def kind_of(linear: str) -> str:
    """A linear's name within its block: ``mlp.up_proj`` of ``model.layers.3.mlp.up_proj``."""
    return linear if linear == HEAD else ".".join(linear.split(".")[-2:])


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` differs: which linears carry a bias, whether heads are normalized.

    always: linears with a bias whatever the config says; by_flag: config flag -> linears. qk_norm:
    an RMSNorm of every head of q and of k, before rotary embedding.
    """

    always: tuple[str, ...] = ()
    by_flag: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    qk_norm: bool = False

    def biased(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        flagged = [names for flag, names in self.by_flag.items() if config.get(flag, False)]
        return (*self.always, *(name for names in flagged for name in names))


@dataclass(frozen=True)
class Online:
    """Hadamard rotations that are taken while the model runs (METHODS 3.1).

    keys: of queries and keys, head by head, after rotary embedding (R3). down: of down_proj's
    input (R4), whose inverse is merged into the weight.
    """

    keys: bool = False
    down: bool = False


NOTHING_ONLINE = Online()


FAMILIES: dict[str, Family] = {
    "llama": Family(by_flag={"attention_bias": (*QKV, O), "mlp_bias": (*GATE_UP, DOWN)}),
    "qwen2": Family(always=QKV),
    "qwen3": Family(by_flag={"attention_bias": (*QKV, O)}, qk_norm=True),
}


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: base, and the scaling of its frequencies.

    scaling: ``None``, or ``("linear", factor)``, or ``("llama3", factor, low_freq_factor,
    high_freq_factor, original_max_position_embeddings)`` as in Llama 3.1's config.
    """

    theta: float
    scaling: tuple[str | float, ...] | None = None

    def frequencies(self, head_dim: int) -> list[float]:
        """Angular frequency of each of the head_dim / 2 pairs, in radians per position."""
        plain = [self.theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
        if self.scaling is None:
            return plain
        kind, *numbers = self.scaling
        parameters = [float(number) for number in numbers]
        if kind == "linear":
            return [frequency / parameters[0] for frequency in plain]
        return [_llama3(frequency, *parameters) for frequency in plain]


def _llama3(frequency: float, factor: float, low: float, high: float, context: float) -> float:
    """Llama 3.1's rule: long wavelengths are stretched, short ones kept, the rest blended."""
    turns = context * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    blend = (turns - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


@dataclass(frozen=True)
class Anatomy:
    """A family with its sizes: all that is needed to name and shape every tensor.

    qk_norm: every head of q and of k passes an RMSNorm before rotary embedding; its gain [head_dim]
    is one for all heads of a block. What was stored without it has none.
    """

    family: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    rope: Rope
    max_positions: int
    tied: bool
    biased: tuple[str, ...]
    qk_norm: bool = False

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Anatomy:
        """Read a Hugging Face ``config.json``.

        Raises:
            Unsupported: unknown ``model_type``, or a feature that we do not compute exactly.
        """
        kind = str(config.get("model_type"))
        if kind not in FAMILIES:
            raise Unsupported(unknown("architecture", kind, tuple(FAMILIES)))
        _refuse_unknown_features(config)
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return Anatomy(
            family=kind,
            hidden=hidden,
            ffn=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab=int(config["vocab_size"]),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=_rope(config),
            max_positions=int(config.get("max_position_embeddings", 2048)),
            tied=bool(config.get("tie_word_embeddings", False)),
            biased=FAMILIES[kind].biased(config),
            qk_norm=FAMILIES[kind].qk_norm,
        )

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Anatomy:
        rope = value["rope"]
        scaling = tuple(rope["scaling"]) if rope["scaling"] is not None else None
        return Anatomy(
            **{
                **value,
                "rope": Rope(rope["theta"], scaling),
                "biased": tuple(value["biased"]),
            }
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def block(self, layer: int, name: str) -> str:
        """Full name of a part of one block, for instance ``model.layers.3.mlp.up_proj``."""
        return f"model.layers.{layer}.{name}"

    def blocks(self, layer: int, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Full names of several parts of one block."""
        return tuple(self.block(layer, name) for name in parts)

    def shape(self, linear: str) -> tuple[int, int]:
        """(out, in) of a linear, by its name within a block, or of the head."""
        return {
            Q: (self.query_width, self.hidden),
            K: (self.kv_width, self.hidden),
            V: (self.kv_width, self.hidden),
            O: (self.hidden, self.query_width),
            GATE_UP[0]: (self.ffn, self.hidden),
            GATE_UP[1]: (self.ffn, self.hidden),
            DOWN: (self.hidden, self.ffn),
            HEAD: (self.vocab, self.hidden),
        }[linear]

    def linears(self) -> Iterator[str]:
        """Full names of all linears of the blocks, in the order in which they run."""
        for layer in range(self.layers):
            for name in LINEARS:
                yield self.block(layer, name)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint of this anatomy must hold."""
        shapes: dict[str, tuple[int, ...]] = {f"{EMBED}.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            for feed in FEEDS:
                shapes[f"{self.block(layer, feed.norm)}.weight"] = (self.hidden,)
            for name in LINEARS:
                full = self.block(layer, name)
                shapes[f"{full}.weight"] = self.shape(name)
                if name in self.biased:
                    shapes[f"{full}.bias"] = (self.shape(name)[0],)
            for name in (Q_NORM, K_NORM) if self.qk_norm else ():
                shapes[f"{self.block(layer, name)}.weight"] = (self.head_dim,)
        shapes[f"{NORM}.weight"] = (self.hidden,)
        if not self.tied:
            shapes[f"{HEAD}.weight"] = (self.vocab, self.hidden)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied table counted once."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    @property
    def linear_macs_per_token(self) -> int:
        """Multiply-adds of all block linears for one token (attention itself not counted)."""
        return self.layers * sum(math.prod(self.shape(name)) for name in LINEARS)

    @property
    def head_macs_per_token(self) -> int:
        return self.vocab * self.hidden


def _rope(config: Mapping[str, Any]) -> Rope:
    # transformers 5 writes one dict `rope_parameters`; 4 writes `rope_theta` and `rope_scaling`.
    merged = {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    theta = float(merged["rope_theta"])
    kind = str(merged.get("rope_type") or merged.get("type") or "default")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, ("linear", float(merged["factor"])))
    if kind == "llama3":
        keys = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        return Rope(theta, ("llama3", *(float(merged[key]) for key in keys)))
    raise Unsupported(unknown("rotary scaling", kind, ("default", "linear", "llama3")))


def _refuse_unknown_features(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"hidden_act {config['hidden_act']} is not known; known: silu")
    other_layers = set(config.get("layer_types") or ()) - {"full_attention"}
    if config.get("use_sliding_window", False) or other_layers:
        raise Unsupported("sliding-window attention is not supported; known: full attention")
    if float(config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise Unsupported("partial rotary embedding is not supported")
    if config.get("quantization_config"):
        raise Unsupported("this model is quantized already: give the full-precision one")
