"""The architectures of timm that are tried with random weights: all families, the smaller members, small images."""

from __future__ import annotations

from typing import Any

__all__ = ["ARCHITECTURES", "SAMPLE"]

_CONVOLUTIONS = """
byobnet: eca_resnet33ts gcresnext26ts gernet_s mobileone_s0 repvgg_a0 resnet32ts seresnet33ts
convnext: convnext_atto convnext_atto_ols convnext_atto_rms convnext_femto convnext_zepto_rms convnextv2_atto
cspnet: cs3darknet_focus_s cs3darknet_s cspresnet50 darknet17 cs3se_edgenet_x
cspnext: cspnext_tiny
densenet: densenet121 densenetblur121d
dla: dla34 dla46_c dla46x_c
dpn: dpn48b dpn68
edgenext: edgenext_xx_small
efficientnet: efficientnet_b0 efficientnet_b0_gn efficientnet_es efficientnet_lite0 efficientnetv2_rw_t fbnetc_100 \
mixnet_s mnasnet_050 mobilenetv1_100 mobilenetv2_035 mobilenetv2_100 semnasnet_075 spnasnet_100 tf_efficientnet_b0 \
tf_efficientnet_lite0 tf_efficientnet_lite1 tf_mixnet_s tinynet_e efficientnet_cc_b0_4e efficientnet_blur_b0
efficientvit_mit: efficientvit_b0
fasternet: fasternet_t0
fastvit: fastvit_t8
ghostnet: ghostnet_050 ghostnetv2_100 ghostnetv3_050
hardcorenas: hardcorenas_a
hgnet: hgnetv2_b0
hrnet: hrnet_w18_small
inception_next: inception_next_atto
lcnetv2: lcnetv2_small
mambaout: mambaout_femto
metaformer: poolformer_s12 poolformerv2_s12 convformer_s18
mobilenetv3: fbnetv3_b lcnet_050 mobilenetv3_large_075 mobilenetv3_rw mobilenetv3_small_050 mobilenetv3_small_100 \
mobilenetv4_conv_small_050 mobilenetv4_conv_small tf_mobilenetv3_small_minimal_100 mobilenetv4_hybrid_medium_075
nfnet: eca_nfnet_l0 nf_resnet26 nf_regnet_b0 test_nfnet
rdnet: rdnet_tiny
regnet: regnetx_002 regnetx_004 regnety_002 regnetz_005 regnetv_040
repghost: repghostnet_050
repvit: repvit_m0_9
res2net: res2net50_14w_8s res2next50
resnest: resnest14d resnest26d
resnet: resnet10t resnet14t resnet18 resnet18d resnet26 resnet34 resnet50 resnet50_gn resnetaa34d resnetblur18 \
ecaresnet26t ecaresnetlight seresnet18 seresnext26d_32x4d resnext50_32x4d resnetrs50 wide_resnet50_2 test_resnet
resnetv2: resnetv2_18 resnetv2_50 resnetv2_50x1_bit resnetv2_50d_gn
rexnet: rexnet_100 rexnetr_100
selecsls: selecsls42
senet: legacy_seresnet18 legacy_seresnext26_32x4d
shvit: shvit_s1
sknet: skresnet18
starnet: starnet_s050
tresnet: tresnet_m
vgg: vgg11 vgg11_bn
vovnet: ese_vovnet19b_slim ese_vovnet19b_dw eca_vovnet39b
xception_aligned: xception41
"""
"""Those that take images of any size: here 64 pixels."""

_LARGER = """
inception_v3: inception_v3
inception_v4: inception_v4
inception_resnet_v2: inception_resnet_v2
xception: legacy_xception
"""
"""Those that take no images below 75 pixels: here 96."""

_TOKENS = """
beit: beit_base_patch16_224
cait: cait_xxs24_224
coat: coat_lite_tiny
convit: convit_tiny
deit: deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
eva: eva02_tiny_patch14_224
mlp_mixer: mixer_s32_224 gmixer_12_224 resmlp_12_224 gmlp_ti16_224
pit: pit_ti_224
vision_transformer: vit_tiny_patch16_224 vit_small_patch32_224 flexivit_small test_vit test_vit2
vision_transformer_hybrid: vit_tiny_r_s16_p8_224
vision_transformer_relpos: test_vit_relpos vit_relpos_small_patch16_224
xcit: xcit_nano_12_p16_224
"""
"""Those that are made for one size of image."""

_MORE: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
    "byobnet": [("bat_resnext26ts", 256, {})],
    "byoanet": [("eca_botnext26ts_256", 128, {"img_size": 128}), ("lambda_resnet26t", 128, {"img_size": 128})],
    "convmixer": [("convmixer_768_32", 28, {})],
    "davit": [("davit_tiny", 64, {})],
    "efficientformer_v2": [("efficientformerv2_s0", 224, {})],
    "efficientvit_msra": [("efficientvit_m0", 224, {})],
    "focalnet": [("focalnet_tiny_srf", 64, {})],
    "gcvit": [("gcvit_xxtiny", 224, {})],
    "hiera": [("hiera_tiny_224", 64, {"img_size": 64})],
    "iformer": [("iformer_t", 64, {})],
    "levit": [("levit_128s", 64, {"img_size": 64}), ("levit_conv_128s", 64, {"img_size": 64})],
    "maxxvit": [("coatnet_pico_rw_224", 64, {"img_size": 64}), ("maxvit_pico_rw_256", 64, {"img_size": 64})],
    "mobilevit": [("mobilevit_xxs", 64, {}), ("mobilevitv2_050", 64, {})],
    "mvitv2": [("mvitv2_tiny", 64, {"img_size": 64})],
    "nest": [("nest_tiny", 64, {"img_size": 64})],
    "pvt_v2": [("pvt_v2_b0", 64, {})],
    "repvit": [("repvit_m1", 64, {})],
    "swiftformer": [("swiftformer_xs", 64, {})],
    "swin_transformer": [("swin_tiny_patch4_window7_224", 64, {"img_size": 64, "window_size": 2})],
    "swin_transformer_v2": [("swinv2_tiny_window8_256", 64, {"img_size": 64, "window_size": 2})],
    "swin_transformer_v2_cr": [("swinv2_cr_tiny_ns_224", 64, {"img_size": 64, "window_size": 2})],
    "tiny_vit": [("tiny_vit_5m_224", 224, {})],
    "tnt": [("tnt_s_patch16_224", 64, {"img_size": 64})],
    "twins": [("twins_svt_small", 64, {"img_size": 64})],
    "visformer": [("visformer_tiny", 64, {"img_size": 64})],
    "volo": [("volo_d1_224", 64, {"img_size": 64})],
    "resnet": [("resnet18", 64, {"in_chans": 1}), ("resnet18", 64, {"in_chans": 5})],
    "efficientnet": [("mobilenetv2_035", 64, {"in_chans": 1})],
}


def _of(words: str, size: int, options: dict[str, Any]) -> list[tuple[str, str, int, dict[str, Any]]]:
    found = []
    for line in words.replace("\\\n", "").strip().splitlines():
        family, _, names = line.partition(":")
        found += [(family.strip(), name, size, options) for name in names.split()]
    return found


def _patches(name: str) -> int:
    """The side of an image of 4x4 patches."""
    return 56 if "patch14" in name else 120 if name.startswith("flexivit") else 128 if "32" in name else 64


ARCHITECTURES: list[tuple[str, str, int, dict[str, Any]]] = [
    *_of(_CONVOLUTIONS, 64, {}),
    *_of(_LARGER, 96, {}),
    *((f, name, _patches(name), {"img_size": _patches(name)}) for f, name, _, _ in _of(_TOKENS, 64, {})),
    *((family, *each) for family, members in _MORE.items() for each in members),
]
"""Family, name, height and width of the image, arguments of ``timm.create_model``."""

SAMPLE = (
    "resnet10t",
    "test_nfnet",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "lcnet_050",
    "regnety_002",
    "tinynet_e",
    "convnext_zepto_rms",
    "starnet_s050",
    "test_vit",
)
"""Those that every run of the tests tries: small ones of different kinds."""
