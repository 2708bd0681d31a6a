"""Wav2vec 2.0 models in folders, as ``save_pretrained`` writes them, and waveforms that one of them understands."""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import hadamard

VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6, "C": 7}
FRAME = 8
# One pattern of 8 samples for each token; the constant one goes to <s>, since offsets are removed before the network.
PATTERNS = hadamard(FRAME)[[1, 0, 2, 3, 4, 5, 6, 7]].astype(np.float32)


def save_model(folder: Path, hears_patterns: bool = True, **config) -> Path:
    """Write a model of one convolution and one layer: its answer is the pattern of each frame, or a random one."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=False), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    options = dict(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=[8],
        conv_kernel=[FRAME], conv_stride=[FRAME], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        pad_token_id=0, initializer_range=1.0, mask_time_prob=0.0, mask_feature_prob=0.0,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**options, **config}))
    if hears_patterns:
        _hear_patterns(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def _hear_patterns(model) -> None:
    """The convolution matches the patterns; whatever mixes frames adds nothing, so the largest match is the token."""
    body = model.wav2vec2
    body.feature_extractor.conv_layers[0].conv.weight.copy_(torch.from_numpy(PATTERNS)[:, None])
    body.encoder.pos_conv_embed.conv.parametrizations.weight.original0.zero_()
    body.encoder.pos_conv_embed.conv.bias.zero_()
    layer = body.encoder.layers[0]
    for linear in (layer.attention.out_proj, layer.feed_forward.output_dense):
        linear.weight.zero_()
        linear.bias.zero_()
    for linear in (body.feature_projection.projection, model.lm_head):
        linear.weight.copy_(torch.eye(8))
        linear.bias.zero_()


def speak(text: str, frames: int = 3, level: float = 0.1) -> np.ndarray:
    """A waveform that the model hears as ``text`` of the letters A, B, C and spaces; ``_`` is a pause (CTC's blank)."""
    tokens = [VOCABULARY[{" ": "|", "_": "<pad>"}.get(letter, letter)] for letter in text]
    return level * PATTERNS[np.repeat(tokens, frames)].ravel()
