"""Every knob of an experiment, typed and frozen.

A config file in configs/ ends in ``experiment = Experiment(...)``; a later stage is ``replace(stage, ...)``; the command
line changes single fields with ``a.b=value`` (:func:`override`). Code reads fields and never asks whether one exists.
"""

import dataclasses
import difflib
import reprlib
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial

from lumina_jax.errors import InputError, prefixed_errors
from lumina_jax.errors import require as _require
from lumina_jax.numbers import LARGEST, real_number, whole_number
from lumina_jax.pod_config import PodConfig
from lumina_jax.run_config import GuardConfig, LogConfig, ResumeConfig, WatchConfig


@dataclass(frozen=True)
class ModelConfig:
    """The Chameleon decoder (paper section 3.1; defaults are the 7B model).

    ``vocab`` is the number of tokens, ``width`` that of features, ``layers`` that of blocks; each block has ``heads`` query heads
    and ``kv_heads`` key/value heads of ``head_dim`` features and an MLP of ``mlp`` features. ``rope_base`` is the base of the
    rotary wavelengths, ``eps`` that of the norms, ``dropout`` the share of activations dropped in training.

    ``qk_groups`` is the number of distinct QK-norm rows: torch kept one per tensor-parallel shard (7B: 1, 34B: 4). ``post_norm``
    puts the norms behind attention and MLP (34B, "swin norm") instead of before them.
    """

    vocab: int = 65536
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    mlp: int = 11008
    qk_groups: int = 1
    post_norm: bool = False
    rope_base: float = 1e4
    eps: float = 1e-5
    dropout: float = 0.05

    def __post_init__(self):
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp", "qk_groups"):
            _require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        _require(
            self.heads % self.kv_heads == 0,
            f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}; change one of them",
        )
        _require(
            self.heads % self.qk_groups == 0 and 0 in (self.kv_heads % self.qk_groups, self.qk_groups % self.kv_heads),
            f"model.qk_groups={self.qk_groups} does not divide model.heads={self.heads} and kv_heads={self.kv_heads} "
            "into equal groups; change one of them",
        )
        _require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} is odd; RoPE rotates halves: make it even")
        _require(0 <= self.dropout < 1, f"model.dropout={self.dropout} is not in [0, 1)")


@dataclass(frozen=True)
class VQConfig:
    """The image tokenizer. ``kind="vqgan"`` is Chameleon's (defaults are its real size); ``kind="patch"`` is PatchVQ.

    ``path`` is a vqgan.ckpt (sizes in the vqgan.yaml beside it override these) or the .npz of a PatchVQ. ``codes`` is the number
    of codes (of a PatchVQ: the most that --fit makes), ``embed`` their size and ``latent`` that of the latents. The encoder has
    ``base`` channels times each of ``multipliers``, ``res_blocks`` residual blocks a level, attention at ``attn_resolutions`` of
    an input of ``resolution`` px.
    """

    kind: str = "vqgan"
    path: str = ""
    codes: int = 8192
    embed: int = 256
    latent: int = 256
    base: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 512

    def __post_init__(self):
        _require(self.kind in ("vqgan", "patch"), f"vq.kind={self.kind!r}; choose 'vqgan' or 'patch'")
        _require(self.codes >= 1, f"vq.codes={self.codes}; it must be at least 1")
        _require(self.base % 32 == 0, f"vq.base={self.base} must be a multiple of 32, the number of GroupNorm groups")

    @property
    def stride(self) -> int:
        """Pixels per latent row or column."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True)
class DataConfig:
    """The folders of tokens and how they are batched.

    ``path`` is a folder written by ``run.py pretokenize``, or several with commas between. ``weights`` are the folders' shares
    of an epoch's records or tokens (``mix_by``); without them each record comes once an epoch. A single folder has none: they are
    dropped, so that one folder of a mixture can be named alone. ``size`` is the edge of the
    square, in px, whose area the crops have at most, ``max_ratio`` their longest side over the shortest at most; ``patch`` is the
    unit of a size token in px. ``tokenizer`` is a tokenizer.json or its folder.

    ``buckets`` are the row lengths in tokens, shortest first. All rows of a batch have one of them: ``batch`` rows of the
    longest, and of a shorter one as many as hold about the same number of tokens, in multiples of ``row_multiple`` (0: of
    ``batch``). With ``packing`` short samples share a row.

    ``drop_context`` is the share of single-image answers trained without their prompt, for guidance (paper section 3.2.2).
    ``threads`` prefetch two batches each; 0 reads each batch when it is asked for. Each host compares ``verify_mb`` MiB of tokens
    with their checksums before the first step, and its share of the rest in the background (0: neither). While pretokenizing,
    ``fetchers`` threads fetch the pictures of records from web servers: as many requests at once, also to a single server. A
    picture that has not come within ``fetch_seconds``, or has more than ``fetch_mb`` MiB, is rejected. Pretokenizing ends when
    ``max_consecutive_rejects`` records in a row cannot be read for one cause (0: never).

    Of a folder in a store (gs://, s3://) each host fetches the lengths once, into the folder ``cache`` of its own disk (empty:
    lumina_jax in the user's caches), then the tokens of a batch by up to ``fetchers`` requests at a time. With ``cache_gb`` tokens
    stay in that folder, up to so many GB (1e9 bytes), for later epochs and starts.
    """

    path: str = ""
    weights: tuple[float, ...] = ()
    mix_by: str = "records"
    tokenizer: str = ""
    size: int = 512
    patch: int = 32
    max_ratio: float = 4.0
    buckets: tuple[int, ...] = (1280,)
    batch: int = 256
    row_multiple: int = 0
    packing: bool = True
    drop_context: float = 0.1
    threads: int = 2
    verify_mb: int = 1024
    max_consecutive_rejects: int = 1000
    fetchers: int = 128
    fetch_seconds: float = 15.0
    fetch_mb: int = 32
    cache: str = ""
    cache_gb: float = 0.0

    def __post_init__(self):
        if len(self.paths) == 1:
            object.__setattr__(self, "weights", ())
        _require(self.patch >= 2, f"data.patch={self.patch}; a size unit is two codes, so it must be at least 2 pixels")
        _require(self.size >= self.patch, f"data.size={self.size} must be at least data.patch={self.patch}")
        _require(self.max_ratio >= 1, f"data.max_ratio={self.max_ratio} must be at least 1")
        _require(
            len(self.buckets) > 0 and tuple(sorted(set(self.buckets))) == self.buckets and self.buckets[0] > 0,
            f"data.buckets={self.buckets} must be one or more positive row lengths in rising order",
        )
        _require(self.batch >= 1, f"data.batch={self.batch}; it must be at least 1")
        _require(
            self.row_multiple >= 0 and self.batch % (self.row_multiple or 1) == 0,
            f"data.row_multiple={self.row_multiple} does not divide data.batch={self.batch}; make it a divisor of it, or 0",
        )
        _require(
            not self.weights or (len(self.weights) == len(self.paths) and min(self.weights) > 0),
            f"data.weights={self.weights} must be positive, one for each folder of data.path={self.path}",
        )
        _require(self.mix_by in ("records", "tokens"), f"data.mix_by={self.mix_by!r}; choose 'records' or 'tokens'")
        _require(0 <= self.drop_context <= 1, f"data.drop_context={self.drop_context} is not in [0, 1]")
        _require(self.threads >= 0, f"data.threads={self.threads}; it must not be negative (0 reads when asked)")
        _require(
            self.verify_mb >= 0, f"data.verify_mb={self.verify_mb}; it must not be negative (0: nothing is verified)"
        )
        _require(
            self.max_consecutive_rejects >= 0,
            f"data.max_consecutive_rejects={self.max_consecutive_rejects}; it must not be negative (0: no limit)",
        )
        _require(1 <= self.fetchers <= 4096, f"data.fetchers={self.fetchers} is not from 1 to 4096")
        _require(
            0 < self.fetch_seconds <= 3600,
            f"data.fetch_seconds={self.fetch_seconds}; give the seconds that one picture may take",
        )
        _require(1 <= self.fetch_mb <= 4096, f"data.fetch_mb={self.fetch_mb}; give from 1 to 4096 MiB")
        _require("://" not in self.cache, f"data.cache={self.cache!r}; give a folder on the disk of each host")
        _require(self.cache_gb >= 0, f"data.cache_gb={self.cache_gb}; it must not be negative (0: tokens are not kept)")

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders of ``path``."""
        return tuple(path.strip() for path in self.path.split(","))

    def rows(self, length: int) -> int:
        """The number of rows of a batch whose rows have ``length`` tokens."""
        multiple = self.row_multiple or self.batch
        return self.batch * self.buckets[-1] // length // multiple * multiple


@dataclass(frozen=True)
class OptimConfig:
    """AdamW on every parameter (the original decays norms and embeddings too) and its schedule.

    The rate climbs for ``warmup`` steps to ``lr``, stays for the share ``hold`` of the rest, then falls to ``min_lr`` along
    ``decay`` ("cosine" or "linear"). The whole run is ``steps`` steps, each of ``accumulate`` parts of a batch. ``b1``, ``b2``,
    ``eps`` and ``weight_decay`` are AdamW's; gradients are clipped at the norm ``clip``; ``z_loss`` is that loss's weight. ``lr
    == min_lr`` is the constant rate of the published runs. ``muon_lr`` is the rate where ``lr`` stands at its highest for the
    matrices of the blocks, by Muon; 0 leaves them to AdamW.

    ``loss_weight`` says what counts alike in the loss: "rows", the samples of a batch, as in the original's means over
    microbatches of like length, or "tokens", the learned tokens (lumina_jax/train/weighting.py).
    """

    steps: int = 10_000
    lr: float = 2e-5
    min_lr: float = 2e-5
    warmup: int = 100
    hold: float = 0.0
    decay: str = "cosine"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 4.0
    z_loss: float = 1e-5
    loss_weight: str = "rows"
    accumulate: int = 1
    muon_lr: float = 0.0

    def __post_init__(self):
        _require(self.steps >= 1, f"optim.steps={self.steps}; it must be at least 1")
        _require(self.warmup >= 0, f"optim.warmup={self.warmup}; it must not be negative")
        _require(self.decay in ("cosine", "linear"), f"optim.decay={self.decay!r}; choose 'cosine' or 'linear'")
        _require(0 <= self.hold <= 1, f"optim.hold={self.hold} is not in [0, 1]")
        _require(self.lr > 0 and self.min_lr >= 0, f"optim.lr={self.lr}, optim.min_lr={self.min_lr}; must be positive")
        _require(self.muon_lr >= 0, f"optim.muon_lr={self.muon_lr}; it must not be negative (0: AdamW for all weights)")
        _require(self.clip > 0, f"optim.clip={self.clip}; it must be positive (1e9 never clips)")
        known = ("rows", "tokens")
        _require(
            self.loss_weight in known, f"optim.loss_weight={self.loss_weight!r}; choose {' or '.join(map(repr, known))}"
        )
        _require(self.accumulate >= 1, f"optim.accumulate={self.accumulate}; it must be at least 1")


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices, what a train step keeps in memory, and the kernels that it uses.

    One of ``replica``, ``fsdp``, ``tensor`` may be -1: all devices that are left. ``zero1`` splits master weights and optimizer
    state over the replicas as well. ``compute`` is the dtype of matrices and activations; master weights and optimizer state
    are always float32. ``remat`` selects what is kept for the backward pass and what is recomputed (REMAT in model/block.py).
    ``loss_chunk`` is the number of tokens of a row whose logits exist at a time. ``unroll`` is the number of layers in an
    iteration of the scan: 1 compiles fastest; all layers run fastest in a tiny model. ``attention`` is "splash" (Pallas kernels,
    for TPUs), "cudnn" (for NVIDIA GPUs, in bfloat16), "plain", or "auto": splash on TPUs, cudnn on GPUs, plain elsewhere.
    ``dropout_rng`` "global" draws the same masks on every mesh; with "local" each device draws
    its own with the hardware's generator, which is much faster.

    ``quant`` "int8" or "fp8" rounds both sides of the blocks' matrix products, forward and backward, to so few bits, whose products
    take half the time on chips that have them (model/quant.py); embedding, norms and head stay in ``compute``. ``quant_skip``
    "FIRST,LAST" leaves that many first and last blocks in ``compute`` as well.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1
    zero1: bool = True
    compute: str = "bfloat16"
    remat: str = "block"
    loss_chunk: int = 512
    unroll: int = 1
    attention: str = "auto"
    dropout_rng: str = "global"
    quant: str = "none"
    quant_skip: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("replica", "fsdp", "tensor"):
            size = getattr(self, name)
            _require(size >= 1 or size == -1, f"mesh.{name}={size}; it must be at least 1, or -1 for all that are left")
        _require(
            sum(n == -1 for n in (self.replica, self.fsdp, self.tensor)) <= 1,
            f"mesh.replica={self.replica}, mesh.fsdp={self.fsdp}, mesh.tensor={self.tensor}: only one of them may be -1",
        )
        choices = {
            "compute": ("bfloat16", "float32"),
            "remat": ("none", "block", "qkv", "qkv_out", "qkv_out_gate", "matmuls"),
            "attention": ("auto", "plain", "splash", "cudnn"),
            "dropout_rng": ("global", "local"),
            "quant": ("none", "int8", "fp8"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            _require(value in known, f"mesh.{name}={value!r}; choose {' or '.join(map(repr, known))}")
        _require(
            len(self.quant_skip) in (0, 2) and min(self.quant_skip, default=0) >= 0,
            f"mesh.quant_skip={self.quant_skip}; give two numbers, how many first and last blocks are not quantized: 1,1",
        )
        _require(
            self.attention != "cudnn" or self.compute == "bfloat16",
            f"mesh.attention='cudnn' with mesh.compute={self.compute!r}: cuDNN takes bfloat16; set that, or mesh.attention=plain",
        )
        _require(self.loss_chunk >= 1, f"mesh.loss_chunk={self.loss_chunk}; it must be at least 1")
        _require(self.unroll >= 1, f"mesh.unroll={self.unroll}; it must be at least 1")


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are traced, into ``out``/profile, by process 0 or by ``all`` processes.

    ``steps`` is "FIRST:END", END excluded: "10:13" traces steps 10, 11 and 12. Empty: none.
    """

    steps: str = ""
    all: bool = False

    def __post_init__(self):
        first, colon, end = self.steps.partition(":")
        valid = not self.steps or (colon and first.isdigit() and end.isdigit() and 1 <= int(first) < int(end))
        _require(valid, f"profile.steps={self.steps!r}; expected FIRST:END, such as 10:13 for steps 10, 11 and 12")

    @property
    def span(self) -> range:
        """The numbers of the steps to trace, from 1."""
        first, _, end = self.steps.partition(":")
        return range(int(first), int(end)) if self.steps else range(0)


PARALLEL = ("off", "sjd", "coupled", "continued", "matched")
"""The ways of decoding (SampleConfig.parallel)."""
CACHES = ("exact", "int8")
"""The forms of keys and values while sampling (SampleConfig.cache)."""
MOST_TOKENS = 2**20
"""The most tokens of an answer, and to draw from: more than any model of this family has."""
LARGEST_WINDOW = 1024


@dataclass(frozen=True)
class SampleConfig:
    """How tokens are drawn (paper Figure 8, inference_solver.py of the original).

    An image token is drawn from the ``image_top_k`` likeliest, a word from ``text_top_k``, both at ``temperature``; an answer has
    at most ``max_new_tokens`` tokens. ``guidance`` is the released code's scale g: ``g * (cond - uncond) + uncond``; 1 switches
    guidance off. ``min_p`` keeps tokens with p_cond >= min_p * max p_cond; 0 switches it off. Temperature acts after top-k.
    ``parallel`` is the way of decoding; none changes how answers are distributed. "off" draws one token per pass; "matched",
    "sjd", "coupled" and "continued" verify a ``window`` of drafted tokens per pass (lumina_jax/sample/speculative.py). A window
    of 0 means the device's default: 16 tokens, and 10 on CPUs, where every token of a pass costs time. "matched" gives the
    same answers as "off" (up to rounding). ``tree`` more tokens of a pass of "matched" stand in the places of
    drafts that may fail (lumina_jax/sample/tree.py). ``cache`` holds keys and values "exact", in the weights' dtype, or in "int8",
    half of bfloat16's memory, which changes the logits a little.
    """

    guidance: float = 4.0
    temperature: float = 1.0
    image_top_k: int = 2000
    text_top_k: int = 5
    min_p: float = 0.0
    max_new_tokens: int = 8192
    parallel: str = "matched"
    window: int = 0
    tree: int = 0
    cache: str = "exact"

    def __post_init__(self):
        _require(0 <= self.guidance <= 1000, f"sample.guidance={self.guidance} is not in [0, 1000] (1 is off)")
        _require(
            1e-6 <= self.temperature <= 1e6,
            f"sample.temperature={self.temperature} is not in [1e-6, 1e6] (greedy: top_k=1)",
        )
        for name in ("image_top_k", "text_top_k", "max_new_tokens"):
            value = getattr(self, name)
            _require(
                1 <= value <= MOST_TOKENS, f"sample.{name} is {value}; it must be at least 1, at most {MOST_TOKENS:,}"
            )
        _require(0 <= self.min_p <= 1, f"sample.min_p={self.min_p} is not in [0, 1]")
        _require(self.parallel in PARALLEL, f"sample.parallel={self.parallel!r}; choose one of {', '.join(PARALLEL)}")
        _require(
            self.window == 0 or 2 <= self.window <= LARGEST_WINDOW,
            f"sample.window={self.window}; a pass must hold at least 2 tokens, at most {LARGEST_WINDOW}; 0 is the device's own",
        )
        _require(self.cache in CACHES, f"sample.cache={self.cache!r}; choose {' or '.join(CACHES)}")
        _require(
            0 <= self.tree <= LARGEST_WINDOW, f"sample.tree={self.tree} is not in [0, {LARGEST_WINDOW}] (0 is off)"
        )
        _require(
            self.tree == 0 or self.parallel == "matched",
            f"sample.tree={self.tree} needs sample.parallel='matched', not {self.parallel!r}; other ways draw no replacements",
        )

    def limited(self, new_tokens: int) -> "SampleConfig":
        """The same settings for answers of at most ``new_tokens`` tokens."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, new_tokens))


@dataclass(frozen=True)
class Experiment:
    """One training run: everything ``run.py train`` needs.

    ``name`` is printed; ``seed`` draws weights, order and dropout. ``out`` is the folder of its checkpoints and metrics. ``start``
    is the folder of an earlier stage, or one of its checkpoints, or hf://OWNER/NAME, whose weights this run starts from (empty:
    random weights). A checkpoint is written every ``save_every`` steps and, where ``save_minutes`` is not 0, so many minutes after
    the last one. The newest ``keep`` are kept; of every ``keep_every`` steps (0: none) the first one for good; and the
    ``keep_best`` of the lowest held-out loss, where one is measured. metrics.jsonl gets a line every ``log_every`` steps.
    ``compile_cache`` is a folder that keeps compiled programs for the next start (empty: JAX_COMPILATION_CACHE_DIR, or none).
    ``compile_ahead`` compiles the step for all of ``data.buckets`` before the first step; else each is compiled when its first
    batch comes. ``sample`` holds the model's own settings of sampling (conversation.served says where tasks have others).
    """

    name: str = "experiment"
    out: str = "out"
    seed: int = 0
    start: str = ""
    save_every: int = 1000
    save_minutes: float = 0.0
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0
    log_every: int = 1
    compile_cache: str = ""
    compile_ahead: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    vq: VQConfig = field(default_factory=VQConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    pod: PodConfig = field(default_factory=PodConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self):
        for name in ("save_every", "keep", "log_every"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("save_minutes", "keep_every", "keep_best"):
            _require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must be at least 0 (0: off)")
        _require(0 <= self.seed <= LARGEST, f"seed={self.seed}; it must be a whole number from 0 to {LARGEST}")
        _require(
            self.mesh.quant == "none" or sum(self.mesh.quant_skip) < self.model.layers,
            f"mesh.quant_skip={self.mesh.quant_skip} leaves none of model.layers={self.model.layers} to be quantized; "
            "skip fewer, or set mesh.quant=none",
        )
        count = self.optim.accumulate
        for name in ("batch", "row_multiple"):
            rows = getattr(self.data, name)
            _require(rows % count == 0, f"data.{name}={rows} is not a multiple of optim.accumulate={count}")


def override(config, assignments: typing.Sequence[str]):
    """Returns ``config`` with each assignment ``"a.b=value"`` applied; of equal names the last one wins.

    Raises InputError naming the field and its choices when a name is unknown or a value has the wrong type.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"{assignment!r} is not of the form a.b=value")
        changes[name] = value
    return _apply(config, changes, "")


def dotted_fields(kind: type, name: str, prefix: str = "") -> typing.Iterator[str]:
    """The fields called ``name`` in a config of type ``kind`` and in its groups, as ``a.b`` behind ``prefix``."""
    for known, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from dotted_fields(hint, name, f"{prefix}{known}.")
        elif known == name:
            yield prefix + known


def _apply(config, changes: dict[str, str], prefix: str):
    """``config`` with all ``changes`` {dotted name: value} applied at once, since its checks compare fields."""
    hints, values = typing.get_type_hints(type(config)), {}
    by_field: dict[str, dict[str | None, str]] = {}
    for dotted, value in changes.items():
        name, dot, rest = dotted.partition(".")
        by_field.setdefault(name, {})[rest if dot else None] = value
    for name, group in by_field.items():
        if name not in hints:
            known = [f.name for f in fields(config)]
            near = [f"{prefix}{word}" for word in difflib.get_close_matches(name, known, n=1)]
            near = list(dotted_fields(type(config), name, prefix)) or near
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"no field {prefix}{name}{hint}; the fields here are: {', '.join(known)}")
        old = getattr(config, name)
        if is_dataclass(old):
            if (short := SHORT.get(type(old))) and None in group:
                group = {short: group[None]} | {rest: value for rest, value in group.items() if rest is not None}
            if None in group:
                raise InputError(f"{prefix}{name} is a group of fields; set one of them, as {prefix}{name}.x=...")
            values[name] = _apply(old, group, f"{prefix}{name}.")
        elif list(group) != [None]:
            raise InputError(f"{prefix}{name} is a single value; it has no field {next(filter(None, group), '')!r}")
        else:
            values[name] = _parse(group[None], hints[name], f"{prefix}{name}")
    return replace(config, **values)


def _parse(text: str, kind, name: str):
    """A value from the command line, converted to the type that its field declares."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_parse(entry.strip(), item, name) for entry in text.strip("()").split(",") if entry.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{name}={text!r}: expected true or false")
        return text.lower() == "true"
    with prefixed_errors(f"{name}={text!r}: expected {kind.__name__}"):
        return {int: partial(whole_number, minimum=None), float: real_number}.get(kind, kind)(text)


def to_dict(config) -> dict:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


SHORT = {ResumeConfig: "point"}
"""Groups of fields that may be set as one value, and the field that it stands for."""
RENAMED = {PodConfig: {"wait": "join_timeout", "patience": "stall_timeout", "silence": "heartbeat_timeout"}}
"""Fields as older checkpoints name them -> their names now."""
ABSENT = {OptimConfig: {"loss_weight": "tokens"}}
"""Fields that older checkpoints lack -> the value that they were computed with, where that is not the default."""


JSON_TYPES = {bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (list, tuple)}
"""The type of a field -> those that its value may have in JSON."""


def from_dict(kind: type, values: dict):
    """The inverse of :func:`to_dict`; a missing field takes its value in ABSENT, else its default.

    Raises InputError naming an unknown field, or one whose value is of another type.
    """
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} is a JSON {type(values).__name__}, not an object of its fields")
    hints = typing.get_type_hints(kind)
    values = ABSENT.get(kind, {}) | {RENAMED.get(kind, {}).get(name, name): value for name, value in values.items()}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{kind.__name__} has no field {unknown[0]!r}; its fields are {', '.join(hints)}")
    parsed = {}
    for name, value in values.items():
        hint = hints[name]
        if is_dataclass(hint):
            value = from_dict(hint, value)
        elif type(value) not in JSON_TYPES.get(typing.get_origin(hint) or hint, (type(value),)):
            raise InputError(
                f"{kind.__name__}.{name} is {reprlib.repr(value)}, a {type(value).__name__}, not {getattr(hint, '__name__', hint)}"
            )
        elif typing.get_origin(hint) is tuple:
            element = typing.get_args(hint)[0]
            value = tuple(from_dict(element, item) if is_dataclass(element) else item for item in value)
        parsed[name] = value
    return kind(**parsed)
