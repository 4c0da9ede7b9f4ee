"""Learning rates of AdamW that did best where they were measured: bench/results/methods.md.

Of rates three times one another, by validation. An encoder of 23 M parameters on 300 batches of 8
reviews; a decoder of 135 M on 40 batches of 2 texts; 0.5 % of the weights in both. Another model
or a longer run may want a third, or three times, of them.
"""

CLASSIFICATION = "text-classification"
CAUSAL_LM = "causal-lm"

RATES: dict[str, dict[str, float]] = {
    CLASSIFICATION: {
        "activation_columns": 1e-3,
        "fish": 3e-3,
        "gps": 1e-3,
        "gradient_columns": 1e-3,
        "ist": 3e-3,
        "lift": 9e-3,
        "losia": 3e-3,
        "lt_sft": 2.7e-2,
        "neuroada": 9e-3,
        "paca": 9e-3,
        "s2ft": 3e-3,
        "shira": 9e-3,
        "sift": 3e-3,
        "smt": 9e-3,
        "sparsegrad": 3e-3,
        "speft_force": 9e-3,
        "speft_gradient": 3e-3,
        "speft_grasp": 3e-3,
        "speft_magnitude": 9e-3,
        "speft_random": 9e-3,
        "speft_snip": 3e-3,
        "speft_synflow": 3e-3,
        "speft_taylor": 3e-3,
        "spiel": 3e-3,
        "spt": 3e-3,
        "super_tuning": 9e-3,
        "tr_pts": 3e-3,
    },
    CAUSAL_LM: {
        "gps": 1e-3,
        "gradient_columns": 3.3e-4,
        "lift": 9e-3,
        "losia": 1e-3,
        "neuroada": 9e-3,
        "shira": 2.7e-2,
        "spiel": 1e-3,
        "tr_pts": 3.3e-4,
    },
}
