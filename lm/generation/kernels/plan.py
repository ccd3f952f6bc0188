"""The description of a model and its state that the compiled step gets: an array of int64.

Each name is the place of one number in it. Addresses are those of float32 arrays unless stated otherwise, and 0 where
the model has no such part.

Shapes: L layers, B rows, S positions, V vocabulary, D d_model, H heads, G key/value heads, K d_head, F d_ff, N = 2L + 1
norms, one before each sublayer and one before the output head. A starred size is rounded up: inputs of products to
whole blocks, outputs to whole panels (see lm/generation/kernels/layout.py).
"""

(
    COMMANDS,  # address of (8,) int64, of which the first is the number of steps requested so far; negative ends it
    ARRIVED,  # address of (8,) int64, of which the first is the counter of the barrier, initially 0
    NUM_THREADS,
    NUM_ROWS,  # of the next step: tokens to read
    NUM_OUTPUTS,  # of the next step: rows of logits
    IS_PROMPT,  # whether several rows of the next step may belong to one text: 0 or 1
    KIND,  # the type of the weights
    CACHE_KIND,  # the type of the cache, FLOAT32 or BFLOAT16
    PRODUCT,  # address of the kernel that multiplies by the weights
    CACHE_PRODUCT,  # address of the kernel that multiplies by keys and values
    NUM_LAYERS,
    D_MODEL,
    NUM_HEADS,
    NUM_KV_HEADS,
    D_HEAD,
    D_FF,
    VOCAB_SIZE,
    CACHE_ROWS,
    CACHE_COLUMNS,  # a multiple of a block
    IS_GATED,  # 0 or 1
    IS_POST_NORM,  # 0 or 1
    TOKEN_EMBEDDINGS,  # (V, D) in the type of the weights, but panels for int8
    POSITION_EMBEDDINGS,  # (S, D) in the type of the cache
    COS,  # (S, K)
    SIN,  # (S, K)
    NORM_KINDS,  # (N,) int64
    NORMS,  # (N, 2, D) with weight and bias
    QK_NORMS,  # (L, 2, K)
    MATRICES,  # (L, 7) int64, the addresses of the panels of each matrix: q, k, v, output, w1, w3 or 0, w2
    LM_HEAD,  # panels
    TOKEN_IDS,  # (B,) int64
    POSITIONS,  # (B,) int64, their places in their texts
    TEXTS,  # (B,) int64, the rows of the cache that hold their texts
    OUTPUTS,  # (B,) int64, ascending: the rows after which logits are computed
    KEYS,  # (L, cache rows, G, cache columns times K*) in the type of the cache; see attention.py for their order
    VALUES,  # of the same shape
    LOGITS,  # (B, V*)
    X,  # (B, D*)
    NORMED,  # (threads, B, D*)
    PROJECTED,  # (B, (HK)* + 2 (GK)*, or D* if that is larger)
    HEADS,  # (B, (HK)*)
    GATES,  # (B, F*)
    ACTIVATIONS,  # (B, F*)
    SCORES,  # (threads, 16, cache columns + K rounded up to a panel)
    QUANTIZED,  # (threads, B, blocks of the largest of D*, (HK)* and F*), quantized inputs of int8 weights
    SIZE,
) = range(46)

NO_NORM, RMS_NORM, LAYER_NORM = range(3)
EPS = 1e-5  # of every norm
