"""Adjectives and first names of the embedded corpus (our own selection); see `words` for the nouns."""

from .words import UNIONS

ADJECTIVE_LISTS: dict[str, str] = {
    "color": "vermelho azul verde amarelo roxo branco preto cinzento marrom dourado prateado alaranjado lilás/lilás/"
    "lilases/lilases rosado",
    "look": "bonito colorido brilhante listrado manchado enfeitado simples/simples/simples/simples delicado estranho "
    "misterioso raro lindo engraçado encantador diferente quadriculado",
    "size": "pequeno grande enorme minúsculo pesado leve comprido",
    "state": "velho novo antigo limpo sujo empoeirado enferrujado amassado remendado resistente "
    "frágil/frágil/frágeis/frágeis gasto",
    "cloth": "largo apertado macio florido bordado desbotado elegante quentinho xadrez/xadrez/xadrez/xadrez",
    "taste": "fresco saboroso gostoso delicioso cheiroso caprichado perfumado caseiro",
    "warm": "quente morno quentinho cremoso",
    "crisp": "crocante macio dourado redondo recheado",
    "ripe": "maduro suculento azedo cheiroso amarelo pequeno fresco perfumado gostoso",
    "beast": "pequeno manso arisco esperto curioso branco preto cinzento velho barulhento preguiçoso assustado brincalhão/"
    "brincalhona/brincalhões/brincalhonas dorminhoco faminto magro enorme elegante atrevido",
    "fur": "gordo fofo bonito",
    "scene": "calmo tranquilo silencioso movimentado ensolarado enorme antigo pequeno vazio bonito florido distante "
    "fresco escuro iluminado deserto barulhento agradável",
    "room": "arrumado bagunçado quieto empoeirado apertado espaçoso claro escuro antigo cheiroso aconchegante vazio "
    "iluminado silencioso",
    "trait": "curioso corajoso tímido alegre paciente teimoso esperto gentil bondoso distraído atento calmo apressado "
    "falante risonho sonhador trabalhador brincalhão/brincalhona/brincalhões/brincalhonas quieto generoso cuidadoso "
    "sincero inteligente animado inventivo educado",
    "joy": "feliz contente alegre animado orgulhoso satisfeito radiante aliviado encantado emocionado sorridente "
    "entusiasmado maravilhado tranquilo",
    "surprise": "surpreso admirado espantado boquiaberto curioso maravilhado impressionado",
    "sad": "triste chateado desanimado preocupado aflito magoado decepcionado pensativo nervoso inquieto desapontado "
    "cabisbaixo",
    "fear": "assustado nervoso trêmulo paralisado apavorado inquieto alerta/alerta/alertas/alertas desconfiado",
    "sleepy": "cansado sonolento feliz contente tranquilo satisfeito",
    "tired": "cansado exausto sonolento faminto suado despenteado ofegante molhado",
    "leafy": "seco verde novo molhado amarelado alto pequeno florido",
    "airy": "seco colorido molhado caído pequeno leve amarelado",
    "trunk": "alto florido velho torto enorme antigo frondoso seco carregado",
    "grown": "verde pequeno enorme viçoso bonito forte alto frágil/frágil/frágeis/frágeis",
    "nice": "bonito lindo especial engraçado divertido bem-feito caprichado legal/legal/legais/legais",
    "other": "frio nublado chuvoso ventoso sozinho junto pronto cheio coberto feito escondido quebrado inteiro aberto fechado próximo melhor/melhor/melhores/melhores lento rápido "
    "baixo doce gelado limpo estrelado longo curto bom/boa/bons/boas mau/má/maus/más famoso "
    "mágico possível incrível secreto preso solto perdido esquecido machucado ferido acordado deitado sentado parado certo errado "
    "salvo perfeito especial importante difícil/difícil/difíceis/difíceis fácil/fácil/fáceis/fáceis",
}
"""Group -> adjectives in the masculine singular (`ms/fs/mp/fp` where irregular)."""

ADJECTIVES_OF_CLASS: dict[str, str] = {
    "toy": "color look state size",
    "instrument": "color look state size",
    "device": "color look state size",
    "optic": "color look state size",
    "container": "color look state size",
    "thing": "color look state size",
    "bigbox": "color look state size",
    "pan": "color state size",
    "wear": "color look cloth",
    "pair": "color cloth",
    "blanket": "color cloth",
    "snack": "taste crisp",
    "dish": "taste warm",
    "recipe": "taste warm",
    "fruit": "ripe",
    "pet": "beast fur",
    "farm": "beast fur",
    "singer": "beast",
    "critter": "beast",
    "wild": "beast",
    "outdoor": "scene",
    "indoor": "room",
    "shop": "room scene",
    "under": "color state",
    "furniture": "color state",
    "outspot": "color state",
    "tree": "trunk",
    **dict.fromkeys(("kid", "kin", "bond", *UNIONS["job"].split()), "trait"),
    **dict.fromkeys(("yard", "square", "water", "far"), "scene"),
    "chamber": "room",
    "garden": "color state size",
    "keepsake": "color look",
    "sway": "leafy",
    "blow": "airy",
    "veg": "grown",
    "flower": "grown",
    "literal": "look",
}
"""Noun class -> groups of adjectives that make sense after its nouns."""

NAME_LISTS: dict[str, str] = {
    "f": "Ana Bia Dora Elisa Gabriela Helena Iara Joana Júlia Lara Laura Lívia Luana Luísa Luzia Malu Marina Mariana "
    "Nina Olívia Paula Rafaela Rita Sara Sofia Tainá Teresa Valentina Alice Beatriz Cecília Camila Carolina Catarina "
    "Isabel Letícia Manuela Raquel Janaína Antônia Eduarda Fernanda Jurema Zélia",
    "m": "André Antônio Artur Bento Bruno Carlos Daniel Davi Diego Eduardo Felipe Francisco Gabriel Guilherme Heitor "
    "Hugo Igor Ivo João Joaquim Jorge José Lucas Luís Marcelo Mateus Miguel Murilo Nicolau Otávio Paulo Pedro Rafael "
    "Raul Renato Ricardo Samuel Tadeu Tiago Tomás Ubirajara Vicente Vítor Zeca Cauã Benjamim",
}
"""Gender -> first names."""
