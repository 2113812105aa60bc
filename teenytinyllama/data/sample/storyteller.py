"""Write one story of the embedded corpus from a split, an index and a seed: always the same text, on every machine.

Validation never shares a plot with train, nor a pair (hero, object): one pair in `HELD_OUT_EVERY` belongs to validation,
and no object of a story may form a pair of the other split with its hero.

Rules shared by all plots: times, manners, side scenes, descriptions, dialogue and endings.

See `grammar` for the notation. Fixed chunks are kept short on purpose: almost every second word is a choice, so that a
model which writes correct sentences rarely repeats eight words of a training story.
"""

import random
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from .grammar import NAMES, NOUNS, Entity, Name, Narrator, Noun, adjectives_for, character, tidy
from .plots import HELD_OUT_PLOTS, TRAIN_PLOTS, Plot

_TIMES: dict[str, tuple[str, ...]] = {
    "when": (
        "[numa|certa] [manhã|tarde] de [sol|chuva|vento|domingo|sábado|inverno|verão|outono|feira|calor|frio]",
        "[num|certo] dia [quente|frio|nublado|chuvoso|bonito|ensolarado|calmo|comprido|estranho|ventoso]",
        "[no começo|no fim|no meio] [da tarde|da manhã|das férias|do verão|da semana|do mês|do inverno|do ano]",
        "[na segunda|na terça|na quarta|na quinta|na sexta|no sábado|no domingo][| de manhã| à tarde| bem cedo]",
        "[logo |pouco |um pouco |]depois [do almoço|da aula|da chuva|do café|do lanche|da sesta|da festa]",
        "[quando|assim que] [o sol|a lua] [nasceu|apareceu|surgiu|despontou]",
        "[quando|assim que] [a chuva|a aula|a festa|o trabalho|o ensaio] [acabou|terminou]",
        "ao [amanhecer|entardecer|anoitecer|voltar {do place}|passar {pelo outdoor}|chegar {do place}]",
        "[num|no último|no primeiro] [sábado|domingo|feriado] de [sol|chuva|vento|inverno|verão|calor|festa]",
        "[na véspera|no dia|na manhã|na tarde] [da festa|da viagem|do feriado|do aniversário {do kin}]",
        "[um|certo] dia", "[uma|certa] [manhã|tarde|noite]", "nas férias",
    ),
    "then": (
        "depois", "então", "em seguida", "logo", "mais tarde", "pouco depois", "de repente", "nesse momento", "por sorte",
        "[dois|três|cinco|dez] minutos depois", "naquele instante", "por fim", "sem demora", "nessa hora", "dali a pouco",
        "[uma|meia] hora depois", "no mesmo instante", "[antes|depois] [do café|do lanche|do almoço|da sesta]",
        "quando ninguém esperava", "no fim [da tarde|da manhã|do dia]", "quando {o j} [saiu|chegou|passou]",
    ),
    "meanwhile": (
        "[perto|ao lado|na frente|atrás] {do spot}", "[lá fora|ali perto|mais longe|ao longe]", "enquanto isso", "{no where}",
        "do outro lado {do where}", "{no outdoor adj?}", "no caminho {do place}", "<then>",
    ),
    "how": (
        "devagar", "com [cuidado|calma|carinho|atenção|jeito|pressa|vontade|delicadeza|coragem|paciência]",
        "sem [pressa|medo|barulho|parar|hesitar|olhar para trás|dizer nada|perder tempo]", "em silêncio", "de mansinho",
        "[na ponta dos pés|com as duas mãos|de olhos bem abertos|com a ponta dos dedos]", "bem [depressa|devagar]",
        "com um [sorriso|pulo|suspiro]", "outra vez", "[cantando|assobiando|sorrindo] baixinho", "até [cansar|o fim do dia]",
    ),
    "outpos": (
        "[atrás|ao lado|perto|na frente] {do yardspot adj?}", "[à sombra|embaixo|debaixo] {do tree adj?}",
        "[perto|atrás|ao lado] {do yardspot} {do where}", "entre {o yardspot} e {o yardspot}", "[no meio|na entrada] {do where adj?}",
        "em cima {do outspot adj?}", "[no canto|do outro lado] {do where}",
    ),
    "inpos": (
        "[atrás|ao lado|perto|na frente] {do inspot adj?}", "[debaixo|embaixo|em cima] {do under adj?}", "dentro de {um bigbox adj?}",
        "[perto|atrás|ao lado] {do inspot} {do room}", "[no canto|no fundo|na porta] {do room adj?}", "entre {o inspot} e {o inspot}",
        "no meio {dos toy} {do kin}",
    ),
    "spotpos": ("<outpos>", "<inpos>"),
}

_PEOPLE: dict[str, tuple[str, ...]] = {
    "play": (
        "[desenhar|pintar|observar|imitar|fotografar] {* creature}", "[juntar|colecionar|trocar|contar] {* keepsake adj?}",
        "[desenhar|pintar|inventar] {* toy adj?}", "[comer|preparar|provar] {bite adj?}", "andar de [bicicleta|triciclo|patinete]",
        "[ouvir|contar|ler|inventar] [histórias|piadas|poemas] com {o e}", "passear {no outdoor}", "ajudar {o e}",
        "[cantar|dançar|correr|ler|dormir|brincar|conversar] {no place adj?}", "[tocar|aprender a tocar] {instrument}",
        "[cuidar|tratar] de {* creature}", "[regar|plantar] {* plant}", "visitar {o job}", "[conversar|cozinhar] com {o kin}",
        "[olhar|contar] [as nuvens|as estrelas|os cometas|os pássaros|os barcos]", "[desenhar|seguir|estudar] mapas", "remar {no water}",
        "[construir|desenhar] [jangadas|cabanas|pontes|barcos]", "[procurar|imaginar] [tesouros|cometas|pistas]", "atravessar {o water} de barco", "brincar de [roda|pega-pega|esconde-esconde|circo|capitão]",
    ),
    "skill": (
        "[desenhar|pintar|imitar|fotografar] {* creature}", "[regar|plantar] {* plant}", "tocar {instrument}", "preparar {bite adj?}",
        "[contar|ler|inventar] [histórias|piadas|poemas]", "consertar {* device}", "[cantar|dançar|ler|cozinhar] {no place adj?}",
    ),
    "talk": (
        "— [que tal|por que não] <play>? ~ <asked> {f}<fmanner>.", "— [depois|amanhã|mais tarde] [vamos|podemos|a gente pode] <play> ~ <said> {o e}<emanner>.",
        "— <good> é [melhor|mais importante] do que <bad> ~ <said> {o e}<emanner>.", "— você gosta de <play>? ~ <asked> {f}<fmanner>.",
    ),
    "petname": (
        "Pipoca", "Paçoca", "Farofa", "Biscoito", "Amendoim", "Tapioca", "Tico", "Pingo", "Floco", "Fubá", "Bolota", "Mel",
        "Jujuba", "Cacau", "Nuvem", "Trovão", "Estrela", "Canela", "Pitoco", "Bolinha",
    ),
    "good": (
        "ajudar", "dividir", "esperar", "pedir ajuda", "dizer a verdade", "tentar de novo", "ouvir {o kin}", "perguntar",
        "ter [calma|paciência]", "pedir desculpas", "cuidar dos [bichos|amigos|outros]", "fazer [amigos|as pazes]", "agradecer",
        "[brincar|conversar] com {o f}", "trabalhar em grupo", "[oferecer|dividir] {um bite}", "olhar com atenção",
    ),
    "bad": (
        "ganhar", "brigar", "reclamar", "chorar", "chegar primeiro", "ter {muitos obj}", "ficar com tudo", "fugir", "mentir",
        "[guardar|juntar] {* obj}", "correr sem olhar", "[ganhar|comprar] {um obj nice}", "desistir", "comer {os bite} sem dividir",
    ),
    "vice": (
        "brigar", "reclamar", "mentir", "desistir", "[gritar|resmungar]", "correr sem olhar", "brigar com {o f}", "zombar dos outros",
        "[assustar|acordar] {os creature}", "deixar {* toy} <inpos>", "ter medo de [perguntar|errar|tentar|{* creature}]",
        "esconder [a verdade|{* toy}]", "andar sem {o e}", "comer {* bite} antes do jantar", "sair sem [avisar|pedir]",
    ),
    "outfit": (
        "{um wear adj}", "{um wear adj} e {um wear adj?}", "{um wear} de [lã|algodão|couro|crochê|tricô|linho]",
        "{* pair adj}", "{um wear adj} e {* pair adj?}", "{* pair adj} e {um wear}",
    ),
    "home": (
        "numa [casa|cabana|chácara] [azul|amarela|branca|pequena|antiga|de madeira|de tijolos|sem muro|cheia de flores]",
        "num [sobrado|apartamento|sítio|prédio] [alto|pequeno|antigo|simples|verde|azul|iluminado|sem elevador]",
        "[perto|atrás|ao lado|na frente] {do place adj?}", "[no alto|no fim|no começo] {do outdoor adj?}",
    ),
    "described": (
        "{h} [usava|estava com|gostava de usar] <outfit>.", "{h} era {trait h} e [gostava de|adorava|vivia querendo] <play>.",
        "{h}, [que era|sempre] {trait h}, [gostava de|adorava|amava] <play> e <play>.", "{h} morava <home> com {o e}.",
        "{h} [morava|vivia] <home>. {s} [gostava de|adorava|sonhava em] <play>.",
        "{h} e {o e} [moravam|viviam] <home>, [junto com|ao lado de] {um creature adj}.",
        "[na escola|em casa|no bairro|na rua], [todos|as crianças|os vizinhos] [achavam|diziam] que {h} era {trait h}.",
        "{h} [tinha|criava] {um animal adj} e {um animal adj?}. {s} também [gostava de|adorava] <play>.",
        "{h} [tinha|guardava] {dois toy} e {um keepsake adj}.", "{h} era {trait h}. {s} [gostava de|adorava|amava] <play>.",
        "{h} era {trait h}, mas [às vezes|quase sempre|de vez em quando] [queria|pensava em|preferia] <bad>.",
        "{o e} {do h} [era|parecia] {trait e} e [ensinava a|gostava de|sabia] <skill>.",
    ),
    "opening": (
        "<when>, {h} [foi|saiu|resolveu ir] {ao where adj} [com {o e}|para <play>].",
        "<when>, {h} [estava|ficou|brincava|descansava] {no where adj?} [com {o f}|com {o e}|perto {do yardspot}].",
        "<when>, {h} [estava|ficou|brincava|descansava] {no room adj?} [com {o f}|com {o e}|perto {do inspot}].",
        "<described> <when>, [{s} |]saiu para <play>.", "<described> <when>, {s} [foi|correu] {ao where adj?} [com {o f}|para <play>].",
        "<described> <when>, {s} estava {joy h} e [foi|desceu|correu] {ao where}.",
        "era uma vez {um kid} {trait h} [que se chamava|de nome|chamad{h o/a}] {h}. {s} [usava|estava com|gostava de usar] <outfit>.",
        "era uma vez {um kid} {trait h} [que se chamava|de nome|chamad{h o/a}] {h}. {s} [gostava de|adorava] <play>.",
        "{h} [acordou|levantou] [cedo|tarde|antes {do e}|com o sol] e [foi|correu] {ao where adj?}.",
        "<when>, {h} e {f} [brincavam|conversavam|passeavam|descansavam] {no where adj?}[, <ambplace>|].",
        "<when>, {o e} [chamou|convidou] {h} para <play>.", "<described>", "<described> {s} e {f} [brincavam|estudavam] {no room}.",
        "fazia [frio|calor|sol|vento] {no where adj?}. {h} [usava|estava com] <outfit> e [queria|ia|resolveu] <play>.",
    ),
}

_SIDE_SCENES: dict[str, tuple[str, ...]] = {
    "beastdid": (
        "dormia", "descansava", "passeava", "cochilava", "brincava", "espiava", "comia {bite}", "fazia barulho", "bocejava",
        "olhava tudo", "tomava sol", "esperava", "procurava comida", "se escondia", "seguia {um animal}", "farejava {um obj}",
    ),
    "jobdid": (
        "varria {o place adj?}", "[pintava|limpava|consertava] {o spot adj?}", "[lavava|guardava|consertava] {um obj adj}",
        "[enfeitava|arrumava] {o indoor adj?}", "[vendia|embrulhava] {* bite}", "conversava com {o job}", "carregava {dois bigbox}",
    ),
    "amb": (
        "[enquanto|e] {um animal adj?} <beastdid> [<spotpos>|ali perto]", "[enquanto|e] {o job} <jobdid>",
        "[enquanto|e] o vento balançava {os sway adj?}[| {do where}]", "[enquanto|e] {um creature adj} <beastdid> <outpos>",
        "[enquanto|e] {dois creature} [brincavam|descansavam|passeavam] <outpos>",
    ),
    "ambplace": (
        "onde {o job} <jobdid>", "[onde|perto de onde] {um creature adj} <beastdid>", "ao lado de {um yardspot} {= cheio} de {* blow}", "<amb>",
    ),
    "scene": (
        "<meanwhile>, {um animal adj} <beastdid> [<spotpos>|].", "{o job} <jobdid> e [cantava|assobiava|sorria].",
        "o vento [balançava|sacudia] {os sway adj} {do where} [e|enquanto] {um creature} <beastdid>.",
        "o vento [espalhava|levava] {* blow adj} {do where adj?} até {o place}.", "<then>, [caiu|passou] uma chuva [fina|forte|leve|rápida] {no where}.",
        "uma [seta|cruz|placa] [marcava|apontava|indicava] {o spot adj?}, mas [ninguém|só {um animal adj?}] [viu|reparou].",
        "a correnteza {do water} [levou|trouxe] {* blow adj?} até a margem.", "<then>, uma nuvem [cobriu|escondeu] [o sol|a lua|as estrelas|o céu].",
        "{um animal adj} [pulou|subiu] {no yardspot} e se calou.",
        "um cheiro [bom|gostoso|forte|leve|doce] de {dish} [vinha|chegava|saía] {do indoor}.",
        "[no céu|lá no alto|ao longe], [as nuvens|as estrelas] [pareciam|lembravam] {* obj} e {* creature}.",
        "{dois creature} [correram|passaram|saltaram|fugiram] {pelo where adj?} e [assustaram|acordaram|divertiram] {um animal}.",
        "{no where}, as crianças [trocavam|mostravam|pintavam] {* toy} e [comiam|dividiam|provavam] {bite}.",
        "<then>, {o e} [trouxe|ofereceu|serviu|preparou] {um dish adj} e {um bite}.",
        "a [noite|tarde|manhã] estava [fria|calma|bonita|silenciosa|quente|clara|escura], e {um singer adj?} cantava <outpos>.",
    ),
}

_SPEECH: dict[str, tuple[str, ...]] = {
    "said": ("disse", "falou", "contou", "explicou", "comentou", "avisou", "afirmou", "sussurrou", "lembrou"),
    "asked": ("perguntou", "quis saber", "indagou"),
    "cried": ("gritou", "exclamou", "festejou", "disse", "falou"),
    "replied": ("respondeu", "murmurou", "garantiu", "prometeu", "disse", "falou"),
    "gesture": (
        ", com [os olhos brilhando|um sorriso|a mão no queixo|a voz fina|alegria|carinho]", ", [batendo palmas|dando um pulo|rindo|sem fôlego]",
        ", [olhando|apontando] para {o spot}", ", [baixinho|devagar|de longe|de perto]", "", "",
    ),
    "hmanner": (", {joy h}", ", {surprise h}", "<gesture>", "<gesture>", ""),
    "fmanner": (", {joy f}", ", {surprise f}", "<gesture>", "<gesture>", ""),
    "emanner": (", {joy e}", ", {joy e}", "<gesture>", "<gesture>", ""),
    "praise": (
        "[você|a gente] [conseguiu|merece {um bite}|foi longe]!", "[que|quanta] [alegria|sorte|surpresa|coragem|saudade]!",
        "[viva|parabéns|ótimo|legal]!", "[quem diria|olhem só|até que enfim|deu certo]!", "[agora|hoje|amanhã] [vamos|podemos|a gente pode] <play>!",
    ),
    "admire": (
        "[que|mas que] {thing nice}!", "[nunca|eu nunca] vi {um thing} tão {= bonito}!", "{este thing} é [tão|muito] {= bonito}!", "como {este thing} é {= bonito}!",
        "{o thing} ficou [mais|muito] {= bonito}!",
    ),
    "step": ("<fstep>", "<fstep>", "<fstep>", "[chamar|esperar] {o f}", "[brincar|conversar|falar] com {o f}"),
    "fstep": (
        "[pedir ajuda|perguntar|contar tudo|mostrar tudo] {ao j}", "tentar [de novo|mais uma vez|devagar]", "respirar fundo",
        "pensar [com calma|mais um pouco]", "procurar outro jeito", "descansar um pouco", "[comer|provar] {um bite} antes",
        "beber um pouco de água", "conversar com {o kin}", "fazer tudo [com calma|devagar|sem pressa]",
        "esperar até [amanhã|mais tarde]",
    ),
    "hcheer": ("— <praise> ~ <cried> {h}<hmanner>.",),
    "fcheer": ("— <praise> ~ <cried> {f}<fmanner>.", "— obrigad{f o/a}, {h}! <praise> ~ <cried> {f}<fmanner>."),
    "echeer": ("— <praise> ~ <cried> {o e}<emanner>.", "— [muito bem|isso mesmo], {h}! <praise> ~ <cried> {o e}<emanner>."),
    "hint": (
        "— [que tal|por que não] <step>? ~ <asked> {o e}<emanner>.", "— [é bom|vamos|você podia|podemos] <step> ~ <said> {o e}<emanner>.",
        "— [eu ajudo|posso ajudar|vamos lá]! ~ <replied> {f}<fmanner>.", "— [que tal|por que não] <fstep>? ~ <asked> {f}<fmanner>.",
        "— <good> é [melhor|mais importante] do que <bad> ~ <said> {o e}<emanner>.",
    ),
}

_ENDINGS: dict[str, tuple[str, ...]] = {
    "lesson": ("<good> [vale mais do que|é melhor do que|traz mais alegria do que|é mais importante do que] <bad>",),
    "end": (
        "{s} [aprendeu|entendeu|percebeu|descobriu] que <lesson>.",
        "[desde então|desde aquele dia|depois disso], {s} [nunca mais quis|parou de|deixou de] <vice>.",
        "[desde então|desde aquele dia|todo sábado|todo domingo], {h} e {f} [costumam|vão|gostam de] <play>.",
        "naquela noite, {s} [dormiu|adormeceu] {sleepy h} e sonhou com {* creature} e {* obj}.",
        "[todos|as crianças] [riram|cantaram] e comeram {bite adj?} {no where}.",
        "[de noite|em casa|no jantar], {s} contou tudo {ao e}, que [riu|sorriu|aplaudiu] e [serviu|trouxe] {um dish adj?}.",
        "{f} [ganhou|comeu|trouxe] {um bite adj}, e todo mundo [riu|comemorou|aplaudiu|cantou].", "{s} [abraçou|beijou] {o e} e voltou {joy h} para casa.",
        "{h} e {f} [voltaram|foram embora] {joy h f}, falando {do creature} e {do obj}.",
        "e foi assim que {s} [aprendeu a|começou a] <good>.",
    ),
    "thingend": ("[até hoje|agora], {o thing} [fica|mora|descansa] <inpos>.", "<end>", "<end>"),
}

RULES: dict[str, tuple[str, ...]] = _TIMES | _PEOPLE | _SIDE_SCENES | _SPEECH | _ENDINGS
"""Rule name -> its templates."""



Split = Literal["train", "validation"]

MIN_WORDS, MAX_WORDS = 60, 140
HELD_OUT_EVERY = 5
_KIDS, _BONDS = (
    {gender: tuple(noun for noun in NOUNS[kind] if noun.gender == gender) for gender in "fm"} for kind in ("kid", "bond")
)
_BOUND_CLASSES = {"e": "kin", "room": "chamber", "treat": "recipe", "crop": "veg", "pet": "pet"}


@dataclass(frozen=True)
class Story:
    """A story with what it was made from: plot name, hero and main object."""

    text: str
    plot: str
    hero: str
    thing: str


def is_held_out_pair(hero: str, thing: str) -> bool:
    """Return whether a hero and an object may meet only in the validation split.

    The rule reads letters, not list positions, so that a longer word list moves no pair between the splits.
    """
    letters = hero + thing
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(letters)) % HELD_OUT_EVERY == 0


@cache
def _nouns_beside(hero: str, split: Split) -> frozenset[str]:
    """Return the nouns that may stand in a story about the hero: all but the objects kept for the other split."""
    kept_away = {noun.singular for noun in NOUNS["obj"] if is_held_out_pair(hero, noun.singular) != (split == "validation")}
    return frozenset(noun.singular for nouns in NOUNS.values() for noun in nouns) - kept_away


@cache
def _candidates(hero: str, split: Split, kind: str) -> tuple[Noun, ...]:
    """Return the nouns of a class that may stand beside the hero; where all are kept away, any object that may."""
    allowed = _nouns_beside(hero, split)
    return tuple(noun for noun in NOUNS[kind] if noun.singular in allowed) or _candidates(hero, split, "obj")


@cache
def _heroes(split: Split, kind: str) -> tuple[Name, ...]:
    """Return the names that may meet at least one main object of the class."""
    return tuple(name for name in NAMES if any(noun.singular in _nouns_beside(name.text, split) for noun in NOUNS[kind]))


def _bind(rng: random.Random, plot: Plot, split: Split) -> tuple[Name, Narrator]:
    """Draw the characters, places and main object of a story."""
    narrator = Narrator(rng, RULES, {})
    hero = friend = narrator.pick(_heroes(split, plot.thing))
    while friend == hero:
        friend = narrator.pick(NAMES)
    narrator.nouns = partial(_candidates, hero.text, split)
    narrator.bound |= {"h": character(hero), "f": character(friend), "kid": character(narrator.pick(_KIDS[hero.gender]))}
    narrator.bound["f"].introduction = plot.friend_known
    narrator.bound["bond"] = character(narrator.pick(_BONDS[friend.gender]))
    for slot, kind in (*_BOUND_CLASSES.items(), ("j", plot.helper), ("where", plot.where), ("thing", plot.thing)):
        noun = narrator.pick(narrator.nouns(kind))
        narrator.bound[slot] = Entity(noun.gender, noun, adjective=narrator.pick(adjectives_for(noun.kind)))
        narrator.used.add(noun.singular)
    return hero, narrator


def _join(parts: list[str]) -> str:
    """Return the parts as paragraphs: a part that starts with a dash (speech) is a paragraph of its own."""
    text, after_speech = "", False
    for part in filter(None, parts):
        speech = part.startswith("—")
        text += ("\n" if text and (speech or after_speech) else " ") + part
        after_speech = speech
    return tidy(text)


def write_story(split: Split, index: int, seed: int = 0) -> Story:
    """Return story number `index` of a split, 60 to 140 words long.

    All randomness comes from (seed, split, index); stories do not depend on one another.
    """
    plots = HELD_OUT_PLOTS if split == "validation" else TRAIN_PLOTS
    rng = random.Random((seed * 1_000_003 + index) * 2 + (split == "validation"))
    while True:
        name = list(plots)[int(rng.random() * len(plots))]
        hero, narrator = _bind(rng, plots[name], split)
        text = _join([narrator.expand(narrator.pick(stage)) for stage in plots[name].stages])
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            thing = narrator.bound["thing"].noun
            return Story(text, name, hero.text, thing.singular if thing else "")
