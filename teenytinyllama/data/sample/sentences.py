"""Rules shared by all plots: times, manners, side scenes, descriptions, dialogue and endings.

See `grammar` for the notation. Fixed chunks are kept short on purpose: almost every second word is a choice, so that a
model which writes correct sentences rarely repeats eight words of a training story.
"""

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
        "[uma|meia] hora depois", "no mesmo instante", "[antes|depois] {do snack}", "[quando|assim que] {o j} [saiu|chegou]",
        "quando ninguém esperava", "ao ouvir {um animal adj?}", "ao ver {um animal adj?}", "no fim [da tarde|da manhã|do dia]",
    ),
    "meanwhile": (
        "[perto|ao lado|na frente|atrás] {do spot}", "[lá fora|ali perto|mais longe|ao longe]", "enquanto isso", "{no place}",
        "do outro lado {do outdoor}", "{no outdoor adj?}", "no caminho {do place}", "<then>",
    ),
    "how": (
        "devagar", "com [cuidado|calma|carinho|atenção|jeito|pressa|vontade|delicadeza|coragem|paciência]",
        "sem [pressa|medo|barulho|parar|hesitar|olhar para trás|dizer nada|perder tempo]", "em silêncio", "de mansinho",
        "[na ponta dos pés|com as duas mãos|de olhos bem abertos|com a ponta dos dedos]", "bem [depressa|devagar]",
        "com um [sorriso|pulo|suspiro|abraço]", "[mais uma|outra] vez", "[cantando|assobiando|sorrindo]", "com {um obj adj?}",
    ),
    "spotpos": (
        "[atrás|ao lado|perto|na frente] {do spot adj?}", "[debaixo|embaixo] {do under adj?}", "dentro de {um bigbox adj?}",
        "[perto|atrás|ao lado] {do inspot} {do indoor}", "[perto|atrás|ao lado] {do yardspot} {do outdoor adj?}",
        "[à sombra|embaixo] {do tree adj?}", "[no canto|no fundo] {do indoor adj?}", "[no meio|na entrada] {do outdoor adj?}",
        "entre {o inspot} e {o inspot}", "entre {o yardspot} e {o yardspot}", "no meio {dos toy} {do kin}", "{no place adj}",
    ),
}

_PEOPLE: dict[str, tuple[str, ...]] = {
    "play": (
        "[desenhar|pintar|observar|imitar|fotografar] {* animal}", "[juntar|colecionar|trocar|desenhar|pintar] {* obj}",
        "[comer|preparar|provar] {bite adj?}", "[subir em|abraçar] árvores", "andar de [bicicleta|triciclo|patinete]",
        "[ouvir|contar|ler|inventar] [histórias|piadas|poemas] com {o e}", "passear {no outdoor}", "ajudar {o e}",
        "[cantar|dançar|correr|ler|dormir|brincar|conversar] {no place adj?}", "[tocar|aprender] {instrument}",
        "[cuidar|tratar] de {* pet}", "[regar|plantar|cheirar] {* plant}", "visitar {o job}", "conversar com {o job}",
        "[olhar|contar] [as nuvens|as estrelas|os pássaros|os barcos]", "brincar de [roda|pega-pega|esconde-esconde|circo]",
    ),
    "petname": (
        "Pipoca", "Paçoca", "Farofa", "Biscoito", "Amendoim", "Tapioca", "Tico", "Pingo", "Floco", "Fubá", "Bolota", "Mel",
        "Jujuba", "Cacau", "Nuvem", "Trovão", "Estrela", "Canela", "Pitoco", "Bolinha",
    ),
    "good": (
        "ajudar", "dividir", "esperar", "pedir ajuda", "dizer a verdade", "tentar de novo", "ouvir {o kin}", "perguntar",
        "ter [calma|paciência]", "pedir desculpas", "cuidar {dos animal}", "fazer [amigos|as pazes]", "agradecer",
        "[brincar|conversar] com {o f}", "trabalhar em grupo", "[oferecer|dividir] {um bite}", "olhar com atenção",
    ),
    "bad": (
        "ganhar", "brigar", "reclamar", "chorar", "chegar primeiro", "ter {muitos obj}", "ficar com tudo", "fugir",
        "guardar {* obj}", "correr sem olhar", "mentir", "[esconder|trancar] {o obj}", "comprar {um obj adj}", "desistir",
        "comer {os bite} sem dividir", "sonhar com {um obj adj}",
    ),
    "vice": (
        "brigar", "reclamar", "mentir", "fugir", "desistir", "[gritar|resmungar]", "correr sem olhar", "[esconder|perder] {* obj}",
        "[assustar|acordar] {os animal}", "brigar com {o f}", "esquecer {* obj}", "deixar {os toy} <spotpos>", "ter medo de {* animal}",
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
        "{h} [usava|vestia] <outfit>.", "{h} era {trait h} e [gostava de|adorava|vivia querendo] <play>.",
        "{h}, [que era|sempre] {trait h}, [gostava de|adorava|amava] <play> e <play>.", "{h} morava <home> com {o e}.",
        "{h} [morava|vivia] <home> e [gostava de|adorava|sonhava em] <play>.",
        "{h} e {o e} [moravam|viviam] <home>, [junto com|ao lado de] {um animal adj}.",
        "[na escola|em casa|no bairro|na rua], [todos|as crianças|os vizinhos] [achavam|diziam] que {h} era {trait h}.",
        "{h} [tinha|criava] {um animal adj} e {um animal adj?}.", "{h} [tinha|guardava] {dois obj} e {um obj adj}.",
        "{h} era {trait h}, mas [às vezes|quase sempre|de vez em quando] [queria|pensava em|preferia] <bad>.",
        "{o e} {do h} [era|parecia] {trait e} e [ensinava a|gostava de|sabia] <play>.",
    ),
    "opening": (
        "<when>, {h} [foi|saiu|resolveu ir] {ao place adj?} [com {o e}|para <play>].",
        "<when>, {h} [estava|ficou|brincava|descansava] {no place adj?} [com {o f}|com {o e}|perto {do spot}].",
        "<described> <when>, [saiu|foi|correu] {ao place} [com {o f}|para <play>].",
        "<described> <when>, [acordou|levantou] {joy h} e [foi|desceu|correu] {ao place}.",
        "era uma vez {um kid} {trait h} [que se chamava|de nome|chamad{h o/a}] {h}. <described>",
        "{h} [acordou|levantou] [cedo|tarde|antes {do e}|com o sol] e [foi|correu] {ao place adj?}.",
        "<when>, {h} e {f} [brincavam|conversavam|passeavam|descansavam] {no place adj?}[, <amb>|].",
        "<when>, {o e} [chamou|convidou] {h} para <play>.", "<described>", "<described> {h} e {f} [brincavam|estudavam] {no place}.",
        "fazia [frio|calor|sol|vento] {no place adj?}. {h} [usava|vestia] <outfit> e [queria|ia|resolveu] <play>.",
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
        "[enquanto|e] {um animal adj?} <beastdid> [<spotpos>|{no outdoor adj?}]", "[enquanto|e] {o job} <jobdid>",
        "[enquanto|e] o vento balançava {os sway adj?}[| {do outdoor}]", "[onde|perto de onde] {um animal adj} <beastdid>",
        "onde {o job} <jobdid>", "com {um obj adj?} [na mão|no colo]", "[ao lado|perto] de {um yardspot} {= cheio} de {* blow}",
    ),
    "scene": (
        "<meanwhile>, {um animal adj} <beastdid> [<spotpos>|].", "{o job} <jobdid> e [cantava|assobiava|sorria].",
        "o vento [balançava|sacudia] {os sway adj} {do outdoor} [e|enquanto] {um animal} <beastdid>.",
        "o vento [espalhava|levava] {* blow adj} {do outdoor adj?} até {o place}.", "<then>, [caiu|passou] uma chuva [fina|forte|leve|rápida] {no outdoor}.",
        "um cheiro [bom|gostoso|forte|leve|doce] de {dish} [vinha|chegava|saía] {do indoor}.",
        "[no céu|lá no alto|ao longe], [as nuvens|as estrelas] [pareciam|lembravam] {* obj} e {* animal}.",
        "{dois animal} [correram|passaram|saltaram|fugiram] {pelo outdoor adj?} e [assustaram|acordaram|divertiram] {um animal}.",
        "{no place}, as crianças [trocavam|mostravam|escondiam|pintavam] {* obj} e [comiam|dividiam|provavam] {bite}.",
        "{h} pensou {no job} e {no animal adj?}.", "<then>, {o e} [trouxe|ofereceu|serviu|preparou] {um dish adj} e {um bite}.",
        "a [noite|tarde|manhã] estava [fria|calma|bonita|silenciosa|quente|clara|escura], e {um singer adj?} cantava {no outdoor}.",
    ),
}

_SPEECH: dict[str, tuple[str, ...]] = {
    "said": ("disse", "falou", "contou", "explicou", "comentou", "avisou", "afirmou", "sussurrou", "lembrou"),
    "asked": ("perguntou", "quis saber", "indagou"),
    "cried": ("gritou", "exclamou", "festejou", "disse", "falou"),
    "replied": ("respondeu", "murmurou", "explicou", "garantiu", "prometeu", "disse", "falou"),
    "hmanner": (", {joy h}", ", {surprise h}", ", com {um obj} na mão", ", [olhando|apontando] para {o spot}", "", ""),
    "fmanner": (", {joy f}", ", {surprise f}", ", com {um obj} na mão", ", [olhando|apontando] para {o spot}", "", ""),
    "emanner": (", {joy e}", ", com [calma|carinho|alegria|um sorriso]", ", [olhando|apontando] para {o spot}", "", ""),
    "praise": (
        "[que|mas que] {obj adj}!", "[você|a gente] [conseguiu|merece {um bite}|foi longe]!", "parece até {um obj adj}!",
        "[que|quanta] [alegria|sorte|surpresa|coragem|saudade]!", "[viva|parabéns|ótimo]!", "[nunca|eu nunca] vi {um obj} tão {= bonito}!",
        "[agora|hoje|amanhã] [vamos|podemos|a gente pode] <play>!", "[quem diria|olhem só|até que enfim]!",
    ),
    "step": (
        "[pedir ajuda|perguntar|contar tudo] {ao j}", "[chamar|esperar] {o f}", "tentar de novo", "respirar fundo", "usar {um obj adj}",
        "pensar [com calma|mais um pouco]", "procurar outro jeito", "ir {ao place}", "olhar <spotpos>", "buscar {um obj adj}",
    ),
    "hcheer": ("— <praise> ~ <cried> {h}<hmanner>.",),
    "fcheer": ("— <praise> ~ <cried> {f}<fmanner>.", "— obrigad{f o/a}, {h}! <praise> ~ <cried> {f}<fmanner>."),
    "echeer": ("— <praise> ~ <cried> {o e}<emanner>.", "— [muito bem|isso mesmo], {h}! <praise> ~ <said> {o e}<emanner>."),
    "hint": (
        "— [que tal|por que não] <step>? ~ <asked> {o e}<emanner>.", "— [é bom|vamos|você podia|podemos] <step> ~ <said> {o e}<emanner>.",
        "— [eu ajudo|posso ajudar|vamos juntos]! ~ <replied> {f}<fmanner>.", "— [que tal|por que não] <step>? ~ <asked> {f}<fmanner>.",
        "— [quando eu era criança|um dia|certa vez], [vi|ganhei|perdi] {um obj adj} {no place} ~ <said> {o e}<emanner>.",
        "— <good> é [melhor|mais importante] do que <bad> ~ <said> {o e}<emanner>.",
    ),
}

_ENDINGS: dict[str, tuple[str, ...]] = {
    "lesson": ("<good> [vale mais do que|é melhor do que|traz mais alegria do que|é mais importante do que] <bad>",),
    "end": (
        "{h} [aprendeu|entendeu|percebeu|descobriu] que <lesson>.",
        "[desde então|desde aquele dia|depois disso], {h} [nunca mais quis|parou de|deixou de] <vice>.",
        "[desde então|desde aquele dia|todo sábado|todo domingo], {h} e {f} [costumam|vão|gostam de] <play>.",
        "naquela noite, {h} [dormiu|adormeceu] {tired h} e sonhou com {* animal} e {* obj}.",
        "[até hoje|agora], {o thing adj} [fica|mora|descansa] <spotpos>.", "[todos|as crianças] [riram|cantaram] e comeram {bite adj?} {no place}.",
        "[de noite|em casa|no jantar], {h} contou tudo {ao e}, que [riu|sorriu|aplaudiu] e [serviu|trouxe] {um dish adj?}.",
        "{h} ficou {joy h}, e {f} [ganhou|comeu|trouxe] {um bite adj?}.", "{h} [sorriu|agradeceu] {ao e} e voltou {joy h} para casa.",
        "{h} e {f} [voltaram|foram embora] {joy h f}, falando {do animal} e {do obj}.",
        "e foi assim que {h} [aprendeu a|começou a] <good>.",
    ),
}

RULES: dict[str, tuple[str, ...]] = _TIMES | _PEOPLE | _SIDE_SCENES | _SPEECH | _ENDINGS
"""Rule name -> its templates."""
