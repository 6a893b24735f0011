"""Activations of one micro-batch on one rank: a count of what autograd keeps in embedding, blocks and head, in bytes.

Read beside model/embedding.py, block.py, attention.py, moe/layer.py and objective.py: every term names the tensor that is
saved. Where rows are cut (model/sequence_rows.py) the residual stream of a block is a part of the tokens; linears keep all of them.
Legend: n tokens of a pass, D width, F ffn, N copies of tokens that are sent, K choices, E experts, Q read-outs, C candidates,
W width of the compared space, t tensor ranks, value: bytes of what products take; the residual stream is fp32.
"""

from __future__ import annotations

import dataclasses

from model.config import ModelConfig
from model.scoring.vocabulary import MAX_LOGITS
from plan.memory import FP32, INDEX, Degrees, Linear, attention_linears, ffn_linears, sparse_linears
from plan.tasks import SequenceShape, chosen_peers, expert_rows, groups_of, sent_copies, towers_of

NORM = 2 * FP32
"""Mean and deviation that LayerNorm keeps of a token."""


@dataclasses.dataclass(frozen=True)
class Activations:
    """encoder: embedding and what stays of blocks until the backward pass; head: read-outs to loss. block: what one block's
    recomputation adds, 0 where nothing is recomputed. working: gradients of activations at the largest place."""

    encoder: int
    head: int
    block: int
    working: int

    @property
    def kept(self) -> int:
        """Alive between forward and backward pass."""
        return self.encoder + self.head

    @property
    def peak(self) -> int:
        return self.encoder + max(self.head, self.block) + self.working


def activations_of(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int, losses: int = 1
) -> Activations:
    """sequences: inputs and candidates. losses: cross entropies over the logits."""
    tensor = layout.tensor
    part = tuple(
        dataclasses.replace(s, rows=-(-s.rows // model.chunks), reads=-(-s.reads // model.chunks)) for s in sequences
    )
    embedding = kept = largest = working = 0
    for tower, mine in towers_of(model, part):
        embedding += sum(_embedding(tower, s, value) for s in mine) + _layout(tower, mine)
        blocks = [_block(tower, layer, mine, layout, value) for layer in range(tower.depth)]
        inputs = residual_tokens(mine, layout) * tower.width * FP32
        if model.activation_checkpointing == "block":
            merged = [_merged(tower, layer, mine, layout, value) for layer in range(tower.depth)]
            kept += sum(inputs + _decisions(tower, layer, mine) + merged[layer] for layer in range(tower.depth))
            largest = max(largest, *(b - inputs - m for b, m in zip(blocks, merged, strict=True)))
        else:
            kept += sum(blocks)
        working = max(working, 2 * sum(s.tokens for s in mine) * tower.ffn // tensor * value)
    head, logits = _head(model, sequences, tensor, value, losses)
    if model.chunks > 1:  # a part is computed again as a whole: all of it is one recomputed piece
        return Activations(encoder=0, head=head, block=embedding + kept + largest, working=max(working, 2 * logits))
    return Activations(encoder=embedding + kept, head=head, block=largest, working=max(working, 2 * logits))


def exchange_buffers(model: ModelConfig, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int) -> int:
    """What the largest exchange of a pass holds for a moment beyond `activations_of`, in bytes: a block's sums for peers and
    those that arrive (on one rank, a gradient of merged weights); or one side of the rows that travel."""
    largest = 0
    for tower, mine in towers_of(model, sequences):
        if not any(tower.experts.is_sparse(layer, tower.depth) for layer in range(tower.depth)):
            continue
        linears = [linear for pair in sparse_linears(tower, layout.tensor) for linear in pair]
        if tower.experts.decides_per_token:
            tokens = -(-sum(s.tokens for s in mine) // model.chunks)
            working = tokens * tower.ffn // layout.tensor  # is there at another moment
            widest = max(max(linear.local_inputs, linear.local_outputs) for linear in linears)
            numbers = max(0, expert_rows(tower, tokens) * widest - working)
        else:
            travelling = 2 * chosen_peers(tower, layout.expert) * sum(linear.numbers for linear in linears)
            numbers = groups_of(mine) * max(travelling, *(linear.numbers for linear in linears))
        largest = max(largest, numbers * value)
    return largest


def _embedding(model: ModelConfig, s: SequenceShape, value: int) -> int:
    """The shared LayerNorm's input, patches, ids and positions, and the mask of the sequence, also as numbers for the kernel."""
    norm = s.tokens * (model.width * FP32 + NORM)
    patches = s.rows * s.visual * (model.patch_values * value + INDEX)
    ids = (s.tokens - s.rows * s.visual) * INDEX
    return norm + patches + ids + (s.rows * s.length**2 * (1 + value) if s.masked else 0)


def _layout(model: ModelConfig, sequences: tuple[SequenceShape, ...]) -> int:
    """Where tokens stand, their rows and counters, and what dropped paths leave of each branch."""
    kept = 2 * model.depth * FP32 if model.drop_path else 0
    return sum(s.tokens for s in sequences) * (4 * INDEX + kept)


def residual_tokens(sequences: tuple[SequenceShape, ...], layout: Degrees) -> int:
    """Tokens whose residual stream a rank holds."""
    parts = layout.tensor if layout.cuts_rows else 1
    return sum(-(-s.tokens // parts) for s in sequences)


def _block(model: ModelConfig, layer: int, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int) -> int:
    """All that a block keeps, its input included."""
    n, tensor = sum(s.tokens for s in sequences), layout.tensor
    own = residual_tokens(sequences, layout)
    width, ffn, experts = model.width, model.ffn, model.experts
    sparse = experts.is_sparse(layer, model.depth)
    sent = sparse and experts.decides_per_token
    early = model.reads_early(layer) and not layout.cuts_rows
    read, own_read = (sum(s.read_tokens for s in sequences),) * 2 if early else (n, own)
    norms = (own + own_read) * (width * FP32 + NORM) + early * read * INDEX
    scaled = 2 * own_read * width * value if model.layer_scale else 0
    prompts = model.prompts.length if model.prompts else 0
    joined = n + prompts * sum(s.rows for s in sequences)
    # Queries, keys and values in one, the output, the sums of the softmax; with prompts a mask of its own.
    heads = (joined * 3 * width + n * width) // tensor * value + n * model.heads // tensor * FP32
    if prompts:
        heads += sum(s.rows * s.length * (s.length + prompts) * value for s in sequences if s.masked)
    # A dense linear keeps its input; attention's output is kept already, GELU keeps its own input besides. Results of LayerNorm
    # and GELU are computed again under selective checkpointing, but prompts and tokens joined are another tensor.
    selective = model.activation_checkpointing == "selective"
    hidden = (1 if selective else 2) * ffn // tensor
    attention = joined * width * value if prompts or not selective else 0
    attention += read * width // tensor * value  # attention's output, of all sequences together
    feed_forward = read * (hidden + (0 if selective else width)) * value
    if sent and experts.unit == "linear":
        attention = _sent_pair(model, n, attention_linears(model, tensor), value)
    if sent and (experts.unit == "mlp" or experts.top_k == 1):  # both linears where the token was sent to
        feed_forward = expert_rows(model, n) * (width + hidden) * value + _sent(model, n)
        # Results that are yet to be weighed: where the expert is, or of every choice at home.
        results = n * experts.top_k if experts.backend == "deepspeed" else sent_copies(model, n)
        feed_forward += results * width * value
    elif sent:
        feed_forward = n * ffn // tensor * value + _sent_pair(model, n, ffn_linears(model, tensor), value)
    if (
        sent and tensor > 1 and not layout.cuts_rows
    ):  # a bias for each row, to be scaled after the sum over tensor ranks
        feed_forward += len(sparse_linears(model, tensor)) * sent_copies(model, n) * width * value
    if sparse and not experts.decides_per_token:
        # Of a sequence whose groups are told apart, queries, keys and values in its places; the others are views of what all have.
        attention += sum(s.tokens for s in sequences if groups_of((s,)) > 1) * 3 * width // tensor * value
    merged = _merged(model, layer, sequences, layout, value)
    return norms + scaled + heads + attention + feed_forward + merged


def _merged(model: ModelConfig, layer: int, sequences: tuple[SequenceShape, ...], layout: Degrees, value: int) -> int:
    """Weights and biases of the groups."""
    experts = model.experts
    if experts.decides_per_token or not experts.is_sparse(layer, model.depth):
        return 0
    numbers = sum(linear.numbers for pair in sparse_linears(model, layout.tensor) for linear in pair)
    return groups_of(sequences) * numbers * value


def _sent_pair(model: ModelConfig, tokens: int, pair: tuple[Linear, ...], value: int) -> int:
    """A decision and its two linears: rows as they arrive, and results that are yet to be scaled. What comes back is kept by whoever uses
    it."""
    numbers = sum(x.local_inputs + (x.local_outputs if x.local_outputs <= x.local_inputs else 0) for x in pair)
    return sent_copies(model, tokens) * numbers * value + _sent(model, tokens)


def _sent(model: ModelConfig, tokens: int) -> int:
    """What router and dispatch keep of one decision: the gate's input, probabilities, ranks, places."""
    experts = model.experts
    features = model.width * (2 if experts.router == "context" else 1)
    probabilities = experts.num_experts * (INDEX + FP32 * (1 + 2 * len(experts.auxiliary.names)))
    return tokens * (features * FP32 + probabilities + experts.top_k * 4 * INDEX)


def _decisions(model: ModelConfig, layer: int, sequences: tuple[SequenceShape, ...]) -> int:
    """What model/encoder.py keeps of a recomputed block: the results of sorting (values and places), and the numbers of its noise."""
    if not model.experts.is_sparse(layer, model.depth) or not model.experts.decides_per_token:
        return 0
    tokens = sum(s.tokens for s in sequences)
    places = sent_copies(model, tokens) * 4 * INDEX if model.experts.backend == "own" else 0
    if model.experts.capacity_factor:
        places += tokens * (INDEX + FP32) + tokens * model.experts.top_k * (2 * INDEX + 1)
    numbers = FP32 if model.experts.noise in ("gumbel", "vmoe") else 0
    return (tokens * model.experts.num_experts * (INDEX + FP32 + numbers) + places) * len(sparse_linears(model, 1))


def _head(
    model: ModelConfig, sequences: tuple[SequenceShape, ...], tensor: int, value: int, losses: int
) -> tuple[int, int]:
    """-> (kept from the read-outs on, one matrix of logits)."""
    inputs, candidates, *others = sequences
    logits = inputs.reads * candidates.reads * FP32 // (tensor if candidates.reads >= tensor else 1)
    width, space = model.width, model.space_width
    # LayerNorm's and the projection's inputs where they are read; features, and normalised; scaled in the inputs' case.
    rows = inputs.reads + candidates.rows + sum(other.rows for other in others)
    read = rows * (width * (FP32 + value) + NORM)
    features = (inputs.reads + candidates.reads) * 2 * space * FP32 + inputs.reads * space * FP32
    if losses == 1 and logits > MAX_LOGITS * FP32:  # made and let go in chunks; what is kept is their gradients
        return read + features + (inputs.reads + candidates.reads // tensor) * space * FP32, MAX_LOGITS * FP32 // 2
    return read + features + losses * logits, logits
