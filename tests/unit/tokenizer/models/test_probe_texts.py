from tokenizer.models.probe_texts import probe_texts


def test_probe_texts_are_the_same_each_time_and_spell_the_symbols() -> None:
    texts = probe_texts(["\u2581the", "a", "b\n"], ["<s>"], chains=50)
    assert texts == probe_texts(["\u2581the", "a", "b\n"], ["<s>"], chains=50)
    assert "<s>" in texts
    assert sum(set(text) <= set(" theab\n") for text in texts) >= 50
    for text in texts:
        text.encode()
