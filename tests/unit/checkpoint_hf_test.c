#include "core/checkpoint/hf.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/tool.h"
#include "core/tensor/dtype.h"
#include "tests/unit/checkpoint_fixture.h"
#include <sys/wait.h>

static struct err err;

static struct checkpoint_model fixture_qwen(int version) {
    struct checkpoint_model m = fixture_llama();
    m.qkv_bias = version == 2, m.qk_norm = version == 3;
    m.tied = true, m.kv_channels = version == 3 ? 6 : 2, m.rotary_base = 1e6;
    return m;
}

/* Small whole numbers, which every format holds: 0 to 250. */
static void fill_small(struct fixture *f) {
    uint32_t x = 1;
    fixture_fill(f, 20);
    for (int i = 0; i < f->count; i++)
        for (size_t k = 0; k < fixture_floats(&f->tensors[i]); k++)
            f->tensors[i].master[k] = (float)((x = x * 1664525u + 1013904223u) >> 24 & 127);
}

/* The tool with words up to NULL; its exit status. */
static int tool(const char *a, const char *b, const char *c, const char *d, const char *e) {
    char *argv[] = {(char *)(uintptr_t)a, (char *)(uintptr_t)b, (char *)(uintptr_t)c, (char *)(uintptr_t)d,
                    (char *)(uintptr_t)e};
    int argc = 0;
    while (argc < 5 && argv[argc]) argc++;
    FILE *out = fopen(fixture_path("stdout"), "w");
    err.text[0] = 0;
    int status = checkpoint_tool_run(argc, argv, out, &err);
    fclose(out);
    return status;
}

/* Saves `f`, exports and imports it again, all under the fixture's directory. */
static void there_and_back(struct fixture *f, enum safetensors_dtype dtype) {
    uint64_t bytes;
    struct checkpoint_model model;
    EXPECT(!fixture_save(f, fixture_path("save"), &err), "%s", err.text);
    EXPECT(!checkpoint_export_hf(fixture_path("save"), 0, fixture_path("hf"), dtype, &bytes, &err), "%s",
           err.text);
    EXPECT(!checkpoint_import_hf(fixture_path("hf"), fixture_path("back"), &model, &err), "%s", err.text);
    EXPECT(!checkpoint_verify(fixture_path("back"), 0, &err), "%s", err.text);
}

TEST(exported_and_imported_weights_are_the_same) {
    const struct checkpoint_model models[] = {fixture_llama(),       fixture_gpt2(),    fixture_qwen(2),
                                              fixture_qwen(3),       fixture_mixtral(), fixture_deepseek(),
                                              fixture_deepseek_mtp()};
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_BF16, SAFETENSORS_F16};
    for (size_t i = 0; i < ARRAY_COUNT(models) * 3; i++) {
        struct fixture f, back;
        struct checkpoint_model real = models[i / 3];
        fixture_make_dir();
        fixture_open(&f, models[i / 3]);
        fill_small(&f);
        if (i % 3 == 0) fixture_fill(&f, 20); /* fp32 keeps any bits */
        there_and_back(&f, dtypes[i % 3]);
        real.padded_vocab_size = real.vocab_size;
        fixture_open(&back, real);
        EXPECT(!fixture_load(&back, fixture_path("back"), &err), "%s", err.text);
        EXPECT(back.state.iteration == 0, "a release checkpoint is iteration 0");
        for (int t = 0; t < f.count; t++)
            EXPECT(!memcmp(f.tensors[t].master, back.tensors[t].master, fixture_floats(&back.tensors[t]) * 4),
                   "model %d: %s", (int)i, f.tensors[t].name);
        fixture_close(&f);
        fixture_close(&back);
        fixture_remove(fixture_dir);
    }
}

TEST(exports_are_rounded_and_trimmed_to_the_real_vocabulary) {
    struct fixture f;
    uint64_t bytes;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    fixture_fill(&f, 20);
    EXPECT(!fixture_save(&f, fixture_path("save"), &err), "%s", err.text);
    EXPECT(
        !checkpoint_export_hf(fixture_path("save"), 20, fixture_path("hf"), SAFETENSORS_BF16, &bytes, &err),
        "%s", err.text);
    struct safetensors *s = safetensors_open(fixture_path("hf/model.safetensors"), &err);
    EXPECT(s, "%s", err.text);
    const struct safetensors_tensor *t = s ? safetensors_find(s, "lm_head.weight") : NULL;
    EXPECT(t && t->dims[0] == 11 && t->dims[1] == 8 && t->dtype == SAFETENSORS_BF16, "lm_head");
    const float *want = fixture_find(&f, "output_layer.weight")->master;
    for (int i = 0; t && i < 88; i++) EXPECT_EQ(((const uint16_t *)t->data)[i], f32_to_bf16(want[i]));
    EXPECT(s && safetensors_count(s) == 3 + 2 * 9 && !strcmp(safetensors_metadata(s, "format"), "pt"),
           "file");
    EXPECT_EQ(bytes, fixture_size("hf/model.safetensors"));
    safetensors_close(s);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* Reads the folder with Python's own json and struct, and knows both layouts on its own: Megatron-LM's rows
 * by query group, [gate; up]; Hugging Face's separate or transposed tensors. Elements say where they come
 * from. */
static const char python_reader[] =
    "import json, struct, sys\n"
    "root, family = sys.argv[1], sys.argv[2]\n"
    "raw = open(root + '/model.safetensors', 'rb').read()\n"
    "n = struct.unpack('<Q', raw[:8])[0]\n"
    "header = json.loads(raw[8:8 + n]); data = raw[8 + n:]\n"
    "assert header.pop('__metadata__') == {'format': 'pt'}\n"
    "config = json.load(open(root + '/config.json'))\n"
    "def bf16(x):\n"
    "    u = struct.unpack('<I', struct.pack('<f', x))[0]\n"
    "    return (u + 0x7FFF + (u >> 16 & 1)) >> 16\n"
    "def tensor(name):\n"
    "    t = header[name]; b, e = t['data_offsets']\n"
    "    assert t['dtype'] == 'BF16', name\n"
    "    return t['shape'], struct.unpack('<%dH' % ((e - b) // 2), data[b:e])\n"
    "checked = set()\n"
    "def check(name, shape, source):\n" /* source(i, j): program row and column of element [i, j] */
    "    got_shape, got = tensor(name)\n"
    "    assert got_shape == shape, (name, got_shape, shape)\n"
    "    cols = shape[1] if len(shape) > 1 else 1\n"
    "    for i in range(shape[0]):\n"
    "        for j in range(cols):\n"
    "            r, c = source(i, j)\n"
    "            want = bf16(1000.0 * r + c)\n"
    "            assert got[i * cols + j] == want, (name, i, j, got[i * cols + j], want)\n"
    "    checked.add(name)\n"
    "same = lambda i, j: (i, j)\n"
    "turned = lambda i, j: (j, i)\n"
    "if family == 'llama':\n"
    "    h, f, d = config['hidden_size'], config['intermediate_size'], config['head_dim']\n"
    "    heads, kv, v = config['num_attention_heads'], config['num_key_value_heads'], config['vocab_size']\n"
    "    per = heads // kv\n"
    "    assert config['architectures'] == ['LlamaForCausalLM'] and config['rope_theta'] == 10000\n"
    "    assert (h, f, d, heads, kv, v) == (8, 12, 2, 4, 2, 11) and config['rms_norm_eps'] == 1e-5\n"
    "    def q(i, j):\n"
    "        head, x = divmod(i, d)\n"
    "        return (head // per) * (per + 2) * d + (head % per) * d + x, j\n"
    "    k = lambda i, j: ((i // d) * (per + 2) * d + per * d + i % d, j)\n"
    "    w = lambda i, j: ((i // d) * (per + 2) * d + (per + 1) * d + i % d, j)\n"
    "    check('model.embed_tokens.weight', [v, h], same)\n"
    "    check('lm_head.weight', [v, h], same)\n"
    "    check('model.norm.weight', [h], same)\n"
    "    for l in range(config['num_hidden_layers']):\n"
    "        p = 'model.layers.%d.' % l\n"
    "        check(p + 'self_attn.q_proj.weight', [heads * d, h], q)\n"
    "        check(p + 'self_attn.k_proj.weight', [kv * d, h], k)\n"
    "        check(p + 'self_attn.v_proj.weight', [kv * d, h], w)\n"
    "        check(p + 'self_attn.o_proj.weight', [h, heads * d], same)\n"
    "        check(p + 'mlp.gate_proj.weight', [f, h], same)\n"
    "        check(p + 'mlp.up_proj.weight', [f, h], lambda i, j: (f + i, j))\n"
    "        check(p + 'mlp.down_proj.weight', [h, f], same)\n"
    "        check(p + 'input_layernorm.weight', [h], same)\n"
    "        check(p + 'post_attention_layernorm.weight', [h], same)\n"
    "elif family == 'mixtral':\n"
    "    h, f, v = config['hidden_size'], config['intermediate_size'], config['vocab_size']\n"
    "    assert config['architectures'] == ['MixtralForCausalLM'] and config['num_experts_per_tok'] == 2\n"
    "    E = config['num_local_experts']; assert (h, f, E) == (8, 5, 3)\n"
    "    checked = set(n for n in header if 'block_sparse_moe' not in n)\n" /* as Llama's */
    "    for l in range(config['num_hidden_layers']):\n"
    "        p = 'model.layers.%d.block_sparse_moe.' % l\n"
    "        check(p + 'gate.weight', [E, h], same)\n"
    "        for e in range(E):\n"
    "            x = p + 'experts.%d.' % e\n"
    "            check(x + 'w1.weight', [f, h], lambda i, j: (e * 2 * f + i, j))\n"
    "            check(x + 'w3.weight', [f, h], lambda i, j: (e * 2 * f + f + i, j))\n"
    "            check(x + 'w2.weight', [h, f], lambda i, j: (e * h + i, j))\n"
    "elif family == 'deepseek_v3':\n"
    "    h, v, heads = config['hidden_size'], config['vocab_size'], config['num_attention_heads']\n"
    "    plain, rope, value = (config[k] for k in ('qk_nope_head_dim', 'qk_rope_head_dim', 'v_head_dim'))\n"
    "    q, kv, E = config['q_lora_rank'], config['kv_lora_rank'], config['n_routed_experts']\n"
    "    f, dense = config['moe_intermediate_size'], config['intermediate_size']\n"
    "    s = config['n_shared_experts'] * f\n"
    "    assert config['architectures'] == ['DeepseekV3ForCausalLM'] and config['scoring_func'] == "
    "'sigmoid'\n"
    "    assert (h, heads, plain, rope, value, q, kv, E, f, dense, s) == (8, 4, 3, 2, 4, 7, 6, 4, 5, 12, "
    "10)\n"
    "    assert (config['n_group'], config['topk_group'], config['num_experts_per_tok']) == (2, 1, 2)\n"
    "    assert config['routed_scaling_factor'] == 2.5 and config['norm_topk_prob'] is True\n"
    "    yarn = config['rope_scaling']\n"
    "    assert (yarn['type'], yarn['factor'], yarn['mscale'], yarn['mscale_all_dim']) == ('yarn', 40, 1, "
    "0.5)\n"
    "    check('model.embed_tokens.weight', [v, h], same); check('lm_head.weight', [v, h], same)\n"
    "    check('model.norm.weight', [h], same)\n"
    "    layers, depths = config['num_hidden_layers'], config['num_nextn_predict_layers']\n"
    "    assert (layers, depths) in ((2, 0), (2, 2))\n"
    "    for l in range(layers, layers + depths):\n"
    "        p = 'model.layers.%d.' % l\n"
    "        for n in ('enorm', 'hnorm', 'shared_head.norm'): check(p + n + '.weight', [h], same)\n"
    "        check(p + 'eh_proj.weight', [h, 2 * h], same)\n"
    "        for n in ('embed_tokens', 'shared_head.head'): check(p + n + '.weight', [v, h], same)\n"
    "    for l in range(layers + depths):\n"
    "        p = 'model.layers.%d.' % l\n"
    "        for n in ('input', 'post_attention'): check(p + n + '_layernorm.weight', [h], same)\n"
    "        a = p + 'self_attn.'\n"
    "        check(a + 'q_a_proj.weight', [q, h], same); check(a + 'q_a_layernorm.weight', [q], same)\n"
    "        check(a + 'q_b_proj.weight', [heads * (plain + rope), q], same)\n"
    "        check(a + 'kv_a_proj_with_mqa.weight', [kv + rope, h], same)\n"
    "        check(a + 'kv_a_layernorm.weight', [kv], same)\n"
    "        check(a + 'kv_b_proj.weight', [heads * (plain + value), kv], same)\n"
    "        check(a + 'o_proj.weight', [h, heads * value], same)\n"
    "        def mlp(p, width, base=0, base2=0):\n"
    "            check(p + 'gate_proj.weight', [width, h], lambda i, j: (base + i, j))\n"
    "            check(p + 'up_proj.weight', [width, h], lambda i, j: (base + width + i, j))\n"
    "            check(p + 'down_proj.weight', [h, width], lambda i, j: (base2 + i, j))\n"
    "        if l < config['first_k_dense_replace']: mlp(p + 'mlp.', dense); continue\n"
    "        check(p + 'mlp.gate.weight', [E, h], same)\n"
    "        mlp(p + 'mlp.shared_experts.', s)\n"
    "        for e in range(E): mlp(p + 'mlp.experts.%d.' % e, f, e * 2 * f, e * h)\n"
    "        name = p + 'mlp.gate.e_score_correction_bias'; t = header[name]; b, e = t['data_offsets']\n"
    "        assert t['dtype'] == 'F32' and t['shape'] == [E]\n"
    "        assert struct.unpack('<4f', data[b:e]) == (0, 1000, 2000, 3000); checked.add(name)\n"
    "else:\n"
    "    h, heads, v, f = config['n_embd'], config['n_head'], config['vocab_size'], config['n_inner']\n"
    "    assert config['architectures'] == ['GPT2LMHeadModel'] and config['activation_function'] == "
    "'gelu_new'\n"
    "    d = h // heads\n"
    "    def qkv(o):\n" /* column of c_attn -> program row */
    "        which, rest = divmod(o, h); head, x = divmod(rest, d)\n"
    "        return head * 3 * d + which * d + x\n"
    "    check('transformer.wte.weight', [v, h], same)\n"
    "    check('transformer.wpe.weight', [config['n_positions'], h], same)\n"
    "    for s in ('weight', 'bias'): check('transformer.ln_f.' + s, [h], same)\n"
    "    for l in range(config['n_layer']):\n"
    "        p = 'transformer.h.%d.' % l\n"
    "        for s in ('weight', 'bias'):\n"
    "            check(p + 'ln_1.' + s, [h], same); check(p + 'ln_2.' + s, [h], same)\n"
    "        check(p + 'attn.c_attn.weight', [h, 3 * h], lambda i, j: (qkv(j), i))\n"
    "        check(p + 'attn.c_attn.bias', [3 * h], lambda i, j: (qkv(i), 0))\n"
    "        check(p + 'attn.c_proj.weight', [h, h], turned); check(p + 'attn.c_proj.bias', [h], same)\n"
    "        check(p + 'mlp.c_fc.weight', [h, f], turned); check(p + 'mlp.c_fc.bias', [f], same)\n"
    "        check(p + 'mlp.c_proj.weight', [f, h], turned); check(p + 'mlp.c_proj.bias', [h], same)\n"
    "assert checked == set(header), set(header) - checked\n";

/* Runs the reader; 127 when there is no python3. */
static int run_python(const char *family) {
    pid_t pid = fork();
    if (pid == 0) {
        execlp("python3", "python3", "-c", python_reader, fixture_path("hf"), family, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(an_independent_reader_finds_every_element_where_hugging_face_has_it) {
    const struct checkpoint_model models[] = {fixture_llama(), fixture_gpt2(), fixture_mixtral(),
                                              fixture_deepseek(), fixture_deepseek_mtp()};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        struct fixture f;
        uint64_t bytes;
        fixture_make_dir();
        fixture_open(&f, models[m]);
        fixture_fill(&f, 20);
        for (int i = 0; i < f.count; i++) {
            int64_t cols = f.tensors[i].num_dims > 1 ? f.tensors[i].dims[1] : 1;
            for (int64_t k = 0; k < (int64_t)fixture_floats(&f.tensors[i]); k++)
                f.tensors[i].master[k] = (float)(1000 * (k / cols) + k % cols);
        }
        EXPECT(!fixture_save(&f, fixture_path("save"), &err), "%s", err.text);
        EXPECT(!checkpoint_export_hf(fixture_path("save"), 0, fixture_path("hf"), SAFETENSORS_BF16, &bytes,
                                     &err),
               "%s", err.text);
        int status = run_python(checkpoint_family_name(checkpoint_family(&models[m], NULL)));
        fixture_close(&f);
        fixture_remove(fixture_dir);
        if (status == 127) SKIP("needs python3");
        EXPECT_EQ(status, 0);
    }
}

TEST(config_json_tells_the_model_and_is_read_back) {
    struct checkpoint_model scaled = fixture_llama(), biased = fixture_llama(), exact = fixture_gpt2();
    scaled.rope_scaling_factor = 32, scaled.tied = true;
    biased.linear_bias = biased.qkv_bias = true;
    exact.activation = CHECKPOINT_GELU, exact.tied = false;
    struct checkpoint_model latent = fixture_deepseek(), plain = latent, rounded = latent, one = latent;
    latent.num_experts = latent.moe_dense_layers = latent.moe_topk = latent.moe_ffn_hidden_size = 0;
    latent.moe_shared_ffn_size = latent.moe_num_groups = latent.moe_group_topk = 0;
    latent.moe_scaling = 0, latent.moe_score = CHECKPOINT_SOFTMAX, latent.q_lora_rank = 0;
    plain.rope_scaling_factor = plain.mscale = plain.mscale_all_dim = 0;
    plain.moe_num_groups = plain.moe_group_topk = 0;
    rounded.mscale_all_dim = 0;
    one.moe_num_groups = one.moe_group_topk = 0, one.moe_topk = 1, one.mscale = one.mscale_all_dim = 0;
    latent.moe_expert_bias = plain.moe_expert_bias = rounded.moe_expert_bias = one.moe_expert_bias = false;
    struct checkpoint_model latent_mtp = fixture_deepseek_mtp();
    latent_mtp.moe_expert_bias = false; /* the folder's weights tell */
    const struct checkpoint_model models[] = {
        fixture_llama(), fixture_gpt2(), fixture_qwen(2),   fixture_qwen(3), scaled, biased,    exact,
        latent,          plain,          fixture_mixtral(), rounded,         one,    latent_mtp};
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        struct str text = {0}, want = {0}, got = {0};
        struct checkpoint_model model = models[i], back;
        struct checkpoint_state state = {0};
        checkpoint_set_extra(&state, "eod_id", 10);
        checkpoint_write_hf_config(&text, &model, &state, SAFETENSORS_BF16);
        EXPECT_CONTAINS(text.data, "\"eos_token_id\":10");
        EXPECT_CONTAINS(text.data, "\"torch_dtype\":\"bfloat16\"");
        struct json *json = json_parse(text.data, text.length, "config.json", &err);
        EXPECT(json && !checkpoint_read_hf_config(json_root(json), "config.json", &back, &err), "%s",
               err.text);
        model.padded_vocab_size = model.vocab_size;
        checkpoint_describe_model(&want, &model);
        checkpoint_describe_model(&got, &back);
        EXPECT_STR(got.data, want.data);
        json_free(json);
        str_free(&text), str_free(&want), str_free(&got);
    }
}

/* Imports a folder whose config.json is `config`; returns the message. */
static const char *import_fault(const char *config) {
    struct checkpoint_model model;
    fixture_write("hf/config.json", config, strlen(config));
    err.text[0] = 0;
    if (!checkpoint_import_hf(fixture_path("hf"), fixture_path("back"), &model, &err)) err.text[0] = 0;
    return err.text;
}

#define LATENTS                                                                                              \
    ",\"kv_lora_rank\":6,\"qk_nope_head_dim\":3,\"qk_rope_head_dim\":2,\"v_head_dim\":4,\"rms_norm_eps\":"   \
    "1e-6"
#define EXPERTS                                                                                              \
    ",\"first_k_dense_replace\":0,\"n_routed_experts\":8,\"moe_intermediate_size\":5,"                       \
    "\"n_shared_experts\":1,\"num_experts_per_tok\":4"

TEST(folders_that_this_program_cannot_serve_are_refused_by_name) {
    fixture_make_dir();
    mkdir(fixture_path("hf"), 0755);
    static const char base[] = "\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1,"
                               "\"num_attention_heads\":4,\"vocab_size\":11";
    static const struct {
        const char *type, *more, *message;
    } cases[] = {
        {"bert", "", "model_type 'bert' is not supported"},
        {"llama", ",\"hidden_act\":\"gelu\"", "hidden_act"},
        {"llama", ",\"hidden_act\":\"mish\"", "hidden_act"},
        {"llama", ",\"attention_bias\":true", "mlp_bias"},
        {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}", "rope_scaling"},
        {"llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"low_freq_factor\":2}", "low_freq_factor"},
        {"llama", ",\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
        {"mistral", ",\"sliding_window\":4096", "sliding_window"},
        {"llama", ",\"num_key_value_heads\":3", "do not divide"},
        {"llama", ",\"head_dim\":-1", "kv_channels"},
        {"llama", ",\"vocab_size\":\"x\"", "'vocab_size' is no whole number"},
        {"llama", "", "model.safetensors: cannot open"},
        {"mixtral", ",\"num_experts_per_tok\":1", "num_experts_per_tok"},
        {"mixtral", ",\"sliding_window\":4096", "sliding_window"},
        {"deepseek_v3", "", "'kv_lora_rank' is missing"},
        {"deepseek_v3", LATENTS ",\"first_k_dense_replace\":1,\"rope_interleave\":false", "rope_interleave"},
        {"deepseek_v3", LATENTS ",\"first_k_dense_replace\":1,\"rms_norm_eps\":1e-5", "rms_norm_eps"},
        {"deepseek_v3", LATENTS ",\"first_k_dense_replace\":1,\"attention_bias\":true", "attention_bias"},
        {"deepseek_v3", LATENTS EXPERTS ",\"scoring_func\":\"softmax\"", "scoring_func"},
        {"deepseek_v3", LATENTS EXPERTS ",\"n_group\":4,\"topk_group\":1", "topk_group"},
        {"deepseek_v3", LATENTS EXPERTS ",\"norm_topk_prob\":false", "norm_topk_prob"},
        {"deepseek_v3", LATENTS EXPERTS ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"beta_fast\":16}",
         "beta_fast"},
        {"deepseek_v3",
         LATENTS EXPERTS ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"attention_factor\":2}",
         "attention_factor"},
        {"gpt2", "", "'n_embd' is missing"},
        {"gpt2",
         ",\"n_embd\":8,\"n_layer\":1,\"n_head\":4,\"n_positions\":9,\"activation_function\":\"relu\"",
         "activation_function"},
        {"gpt2", ",\"n_embd\":8,\"n_layer\":1,\"n_head\":3,\"n_positions\":9", "kv-channels"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct str config = {0};
        str_printf(&config, "{\"model_type\":\"%s\",%s%s}", cases[i].type, base, cases[i].more);
        EXPECT_CONTAINS(import_fault(config.data), cases[i].message);
        str_free(&config);
    }
    EXPECT_CONTAINS(import_fault("[1"), "config.json: line 1");
    EXPECT(!fixture_exists("back"), "something was written all the same");
    fixture_remove(fixture_dir);
}

TEST(choices_of_experts_that_config_json_cannot_say_are_not_exported) {
    struct checkpoint_model m = fixture_mixtral();
    EXPECT(!checkpoint_unlike_family(&m), "mixtral");
    m.moe_pre_softmax = true;
    EXPECT_CONTAINS(checkpoint_unlike_family(&m), "--moe-router-pre-softmax");
    m = fixture_deepseek();
    EXPECT(!checkpoint_unlike_family(&m), "deepseek");
    m.moe_score = CHECKPOINT_SOFTMAX;
    EXPECT_CONTAINS(checkpoint_unlike_family(&m), "other than sigmoid");
    m = fixture_deepseek(), m.moe_topk = 4;
    EXPECT_CONTAINS(checkpoint_unlike_family(&m), "--moe-router-group-topk");
    m.moe_group_topk = 2; /* both groups */
    EXPECT(!checkpoint_unlike_family(&m), "all groups");
    m = fixture_deepseek(), m.norm_epsilon = 1e-5;
    struct fixture f;
    uint64_t bytes;
    fixture_make_dir();
    fixture_open(&f, m);
    fill_small(&f);
    EXPECT(!fixture_save(&f, fixture_path("save"), &err), "%s", err.text);
    EXPECT(checkpoint_export_hf(fixture_path("save"), 0, fixture_path("hf"), SAFETENSORS_F32, &bytes, &err),
           "exported");
    EXPECT_CONTAINS(err.text, "--norm-epsilon");
    EXPECT(!fixture_exists("hf"), "something was written all the same");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_router_without_a_bias_is_one_whose_bias_is_zero) {
    struct checkpoint_model m = fixture_deepseek(), back;
    struct fixture f;
    m.moe_expert_bias = false;
    fixture_make_dir();
    fixture_open(&f, m);
    fill_small(&f);
    there_and_back(&f, SAFETENSORS_BF16);
    struct safetensors *s = safetensors_open(fixture_path("hf/model.safetensors"), &err);
    const struct safetensors_tensor *t =
        s ? safetensors_find(s, "model.layers.1.mlp.gate.e_score_correction_bias") : NULL;
    EXPECT(t && t->dtype == SAFETENSORS_F32 && t->dims[0] == 4, "no bias, or not in fp32");
    for (int i = 0; t && i < 16; i++) EXPECT(!((const char *)t->data)[i], "byte %d", i);
    EXPECT(!checkpoint_import_hf(fixture_path("hf"), fixture_path("again"), &back, &err), "%s", err.text);
    EXPECT(!back.moe_expert_bias, "zeros were taken for a bias");
    safetensors_close(s);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* ---- folders as others write them ---- */

static const char tiny_gpt2[] = "{\"model_type\":\"gpt2\",\"n_embd\":4,\"n_layer\":1,\"n_head\":2,"
                                "\"n_positions\":3,\"vocab_size\":5,\"n_inner\":null}";
static const struct {
    const char *name;
    int num_dims;
    int64_t dims[2];
} tiny_tensors[] = {
    {"wte.weight", 2, {5, 4}},
    {"wpe.weight", 2, {3, 4}},
    {"h.0.ln_1.weight", 1, {4, 1}},
    {"h.0.ln_1.bias", 1, {4, 1}},
    {"h.0.attn.bias", 1, {9, 1}},
    {"h.0.attn.c_attn.weight", 2, {4, 12}},
    {"h.0.attn.c_attn.bias", 1, {12, 1}},
    {"h.0.attn.c_proj.weight", 2, {4, 4}},
    {"h.0.attn.c_proj.bias", 1, {4, 1}},
    {"h.0.ln_2.weight", 1, {4, 1}},
    {"h.0.ln_2.bias", 1, {4, 1}},
    {"h.0.mlp.c_fc.weight", 2, {4, 16}},
    {"h.0.mlp.c_fc.bias", 1, {16, 1}},
    {"h.0.mlp.c_proj.weight", 2, {16, 4}},
    {"h.0.mlp.c_proj.bias", 1, {4, 1}},
    {"ln_f.weight", 1, {4, 1}},
    {"ln_f.bias", 1, {4, 1}},
};

/* Tensors [from, to) of the table into one file; element k holds k; `change` is left out, or widened when
 * `widen`. */
static void write_tiny(const char *file, size_t from, size_t to, enum safetensors_dtype dtype, int change,
                       bool widen) {
    struct safetensors_layout layout = {0};
    for (size_t i = from; i < to; i++) {
        int64_t dims[2] = {tiny_tensors[i].dims[0] + (widen && (int)i == change), tiny_tensors[i].dims[1]};
        if (widen || (int)i != change)
            safetensors_layout_add(&layout, tiny_tensors[i].name, dtype, tiny_tensors[i].num_dims, dims);
    }
    struct safetensors_writer *w = safetensors_writer_open(fixture_path(file), &layout, &err);
    EXPECT(w, "%s", err.text);
    for (int i = 0, skipped = 0; w && i < layout.count; i++) {
        char bytes[128 * 8];
        skipped += !widen && (int)from + i == change;
        size_t row = from + (size_t)(i + skipped), size = safetensors_dtype_bytes(dtype);
        size_t count = (size_t)(tiny_tensors[row].dims[0] * tiny_tensors[row].dims[1]);
        for (size_t k = 0; k < count; k++) {
            double d = (double)k;
            float v = (float)k;
            uint16_t half = dtype == SAFETENSORS_F16 ? f32_to_f16(v) : f32_to_bf16(v);
            memcpy(bytes + k * size,
                   dtype == SAFETENSORS_F64 ? (void *)&d
                                            : (dtype == SAFETENSORS_F32 ? (void *)&v : (void *)&half),
                   size);
        }
        EXPECT(!safetensors_write(w, i, 0, bytes, count * size, &err), "%s", err.text);
    }
    safetensors_writer_close(w, &err);
    safetensors_layout_free(&layout);
}

static void expect_tiny(void) {
    struct fixture f;
    struct checkpoint_info info;
    EXPECT(!checkpoint_find(fixture_path("back"), 0, &info, &err) && info.found && info.release, "%s",
           err.text);
    fixture_open(&f, info.model);
    EXPECT(!fixture_load(&f, fixture_path("back"), &err), "%s", err.text);
    const struct checkpoint_tensor *qkv =
        fixture_find(&f, "decoder.layers.0.self_attention.linear_qkv.weight");
    /* program row 2 is k of head 0: column 4 of c_attn, whose rows are 12 long */
    EXPECT(qkv && qkv->master[2 * 4 + 3] == 3 * 12 + 4, "linear_qkv");
    EXPECT(fixture_find(&f, "embedding.position_embeddings.weight")->master[11] == 11, "positions");
    EXPECT_CONTAINS(info.config_json, "\"num_layers\":{\"value\":1,\"origin\":\"imported\"}");
    EXPECT_CONTAINS(info.config_json, "\"openai_gelu\":{\"value\":true");
    checkpoint_info_free(&info);
    fixture_close(&f);
}

TEST(folders_of_any_float_type_bare_or_sharded_are_imported) {
    static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_BF16, SAFETENSORS_F16,
                                                    SAFETENSORS_F64};
    for (size_t i = 0; i < 2 * ARRAY_COUNT(dtypes); i++) {
        fixture_make_dir();
        mkdir(fixture_path("hf"), 0755);
        size_t n = ARRAY_COUNT(tiny_tensors);
        if (i % 2) {
            static const char index[] =
                "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}";
            write_tiny("hf/one.safetensors", 0, 7, dtypes[i / 2], -1, false);
            write_tiny("hf/two.safetensors", 7, n, dtypes[i / 2], -1, false);
            fixture_write("hf/model.safetensors.index.json", index, sizeof(index) - 1);
        } else {
            write_tiny("hf/model.safetensors", 0, n, dtypes[i / 2], -1, false);
        }
        EXPECT_STR(import_fault(tiny_gpt2), "");
        expect_tiny();
        fixture_remove(fixture_dir);
    }
}

TEST(missing_misshapen_and_unknown_tensors_are_refused_by_name) {
    size_t n = ARRAY_COUNT(tiny_tensors);
    fixture_make_dir();
    mkdir(fixture_path("hf"), 0755);
    write_tiny("hf/model.safetensors", 0, n, SAFETENSORS_F32, 5, false);
    EXPECT_CONTAINS(import_fault(tiny_gpt2), "has no tensor 'transformer.h.0.attn.c_attn.weight'");
    write_tiny("hf/model.safetensors", 0, n, SAFETENSORS_F32, 5, true);
    EXPECT_CONTAINS(import_fault(tiny_gpt2),
                    "'h.0.attn.c_attn.weight' is [5, 12], config.json makes it [4, 12]");
    write_tiny("hf/model.safetensors", 0, n, SAFETENSORS_U16, -1, false);
    EXPECT_CONTAINS(import_fault(tiny_gpt2), "type U16");
    write_tiny("hf/model.safetensors", 0, n, SAFETENSORS_F32, -1, false);
    static const char index[] = "{\"weight_map\":{\"a\":\"../model.safetensors\"}}";
    fixture_write("hf/model.safetensors.index.json", index, sizeof(index) - 1);
    EXPECT_CONTAINS(import_fault(tiny_gpt2), "is no file name");
    unlink(fixture_path("hf/model.safetensors.index.json"));
    static const char two_layers[] = "{\"model_type\":\"gpt2\",\"n_embd\":4,\"n_layer\":2,\"n_head\":2,"
                                     "\"n_positions\":3,\"vocab_size\":5}";
    EXPECT_CONTAINS(import_fault(two_layers), "h.1.ln_1.weight");
    EXPECT(!fixture_exists("back/release"), "something was written all the same");
    fixture_remove(fixture_dir);
}

/* ---- the tool ---- */

TEST(the_tool_says_what_it_found_by_its_exit_status) {
    struct fixture f;
    char *text;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    const char *save = "", *hf = "", *back = "";
    char paths[3][128];
    snprintf(paths[0], 128, "%s/save", fixture_dir), save = paths[0];
    snprintf(paths[1], 128, "%s/hf", fixture_dir), hf = paths[1];
    snprintf(paths[2], 128, "%s/back", fixture_dir), back = paths[2];
    EXPECT_EQ(tool("list", save, NULL, NULL, NULL), STATUS_USAGE);
    for (uint64_t i = 10; i <= 20; i += 10) {
        fixture_fill(&f, i);
        EXPECT(!fixture_save(&f, save, &err), "%s", err.text);
    }
    EXPECT_EQ(tool("list", save, NULL, NULL, NULL), STATUS_OK);
    text = fixture_read("stdout", NULL);
    EXPECT_CONTAINS(text, "* iter_0000020");
    EXPECT_CONTAINS(text, "  iter_0000010");
    mem_free(text);
    EXPECT_EQ(tool("show", save, "--iteration", "10", NULL), STATUS_OK);
    text = fixture_read("stdout", NULL);
    EXPECT_CONTAINS(text, "iteration                10");
    EXPECT_CONTAINS(text, "names: llama");
    mem_free(text);
    EXPECT_EQ(tool("verify", save, NULL, NULL, NULL), STATUS_OK);
    EXPECT_EQ(tool("export-hf", save, hf, "--dtype", "fp32"), STATUS_OK);
    EXPECT_EQ(tool("export-hf", save, hf, "--dtype", "fp32"), STATUS_FAILED);
    EXPECT_CONTAINS(err.text, "is there already");
    EXPECT_EQ(tool("import-hf", hf, back, NULL, NULL), STATUS_OK);
    EXPECT_EQ(tool("verify", back, NULL, NULL, NULL), STATUS_OK);
    EXPECT_EQ(tool("show", back, NULL, NULL, NULL), STATUS_OK);
    fixture_flip("save/iter_0000020/model-00001-of-00001.safetensors",
                 fixture_size("save/iter_0000020/model-00001-of-00001.safetensors") - 1);
    EXPECT_EQ(tool("verify", save, NULL, NULL, NULL), STATUS_FAILED);
    EXPECT_CONTAINS(err.text, "checksum of tensor");
    EXPECT_EQ(tool("export-hf", save, paths[2], NULL, NULL), STATUS_FAILED);
    EXPECT(!fixture_exists("back/config.json") && !fixture_exists("back/model.safetensors"),
           "a damaged checkpoint was exported");
    EXPECT_EQ(tool("verify", save, "--iteration", "10", NULL), STATUS_OK);
    EXPECT_EQ(tool("--help", NULL, NULL, NULL, NULL), STATUS_OK);
    EXPECT_EQ(tool(NULL, NULL, NULL, NULL, NULL), STATUS_USAGE);
    EXPECT_EQ(tool("lsit", save, NULL, NULL, NULL), STATUS_USAGE);
    EXPECT_EQ(tool("list", save, hf, NULL, NULL), STATUS_USAGE);
    EXPECT_EQ(tool("list", save, "--iteration", "5", NULL), STATUS_USAGE);
    EXPECT_EQ(tool("verify", save, "--iteration", "x", NULL), STATUS_USAGE);
    EXPECT_EQ(tool("verify", save, "--iteration", NULL, NULL), STATUS_USAGE);
    EXPECT_EQ(tool("export-hf", save, hf, "--dtype", "int8"), STATUS_USAGE);
    EXPECT_EQ(tool("verify", save, "--wat", NULL, NULL), STATUS_USAGE);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(models_that_hugging_face_has_not_are_not_exported) {
    struct fixture f;
    uint64_t bytes;
    fixture_make_dir();
    fixture_open(&f, fixture_megatron());
    fixture_fill(&f, 20);
    EXPECT(!fixture_save(&f, fixture_path("save"), &err), "%s", err.text);
    EXPECT(checkpoint_export_hf(fixture_path("save"), 0, fixture_path("hf"), SAFETENSORS_F32, &bytes, &err),
           "exported");
    EXPECT_CONTAINS(err.text, "Hugging Face has no such model: rope with LayerNorm");
    EXPECT(!fixture_exists("hf"), "something was written all the same");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

RUN_TESTS(CASE(exported_and_imported_weights_are_the_same),
          CASE(exports_are_rounded_and_trimmed_to_the_real_vocabulary),
          CASE(an_independent_reader_finds_every_element_where_hugging_face_has_it),
          CASE(config_json_tells_the_model_and_is_read_back),
          CASE(folders_that_this_program_cannot_serve_are_refused_by_name),
          CASE(folders_of_any_float_type_bare_or_sharded_are_imported),
          CASE(missing_misshapen_and_unknown_tensors_are_refused_by_name),
          CASE(the_tool_says_what_it_found_by_its_exit_status),
          CASE(models_that_hugging_face_has_not_are_not_exported),
          CASE(choices_of_experts_that_config_json_cannot_say_are_not_exported),
          CASE(a_router_without_a_bias_is_one_whose_bias_is_zero))
