"""A SentencePiece model of a few words, made without a network."""

import io

import sentencepiece

from fedgraft.backbones.drift_classes import drift_classes


def sentencepiece_model(size: int) -> bytes:
    """A unigram model with this many pieces and the special tokens of SigLIP's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a", *drift_classes("siglip")]),
        model_writer=model,
        vocab_size=size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
