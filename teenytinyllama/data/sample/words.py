"""Nouns of the embedded corpus by meaning and gender (our own selection); `lexicon` adds their plurals.

Adjectives and first names of the embedded corpus (our own selection); see `words` for the nouns.
"""





NOUN_LISTS: dict[str, dict[str, str]] = {
    "toy": {
        "m": "pião ioiô carrinho trenzinho barquinho ursinho robô boneco fantoche bambolê foguete quebra-cabeça dominó "
        "patinete dado triciclo aviãozinho/aviõezinhos balão",
        "f": "bola boneca pipa peteca máscara marionete bicicleta bolinha raquete",
    },
    "instrument": {
        "m": "tambor violão apito pandeiro chocalho teclado cavaquinho violino reco-reco berimbau/berimbaus",
        "f": "flauta sanfona gaita corneta viola",
    },
    "device": {
        "m": "relógio rádio regador guarda-chuva ventilador gravador lampião microscópio projetor",
        "f": "luminária bússola máquina peneira balança vitrola",
    },
    "optic": {
        "m": "telescópio binóculo caleidoscópio",
        "f": "lanterna luneta lupa câmera",
    },
    "container": {
        "m": "balde baú pote jarro vaso caixote cesto balaio",
        "f": "caixa cesta jarra sacola mochila mala bolsa lata",
    },
    "bigbox": {
        "m": "baú caixote cesto balaio barril caldeirão",
        "f": "caixa mala cesta arca",
    },
    "pan": {
        "m": "caldeirão tacho prato pilão",
        "f": "panela tigela travessa bacia forma frigideira",
    },
    "thing": {
        "m": "livro caderno lápis/lápis mapa espelho martelo botão quadro retrato cartão bilhete pincel selo sino "
        "banquinho prato pires/pires álbum dicionário cadeado novelo carretel azulejo bule barbante ímã globo",
        "f": "chave caneta lupa moeda concha pedra xícara colher corda tesoura agulha fita carta bengala lâmpada "
        "almofada bandeja carteira fotografia borracha chaleira pluma revista tampa argola corrente ampulheta",
    },
    "wear": {
        "m": "chapéu boné cachecol anel colar lenço casaco cinto vestido avental macacão gorro colete xale turbante poncho",
        "f": "pulseira camisa saia capa blusa jaqueta touca bermuda tiara gravata",
    },
    "blanket": {"m": "pano cobertor lençol", "f": "toalha manta colcha"},
    "pair": {
        "m": "sapato chinelo tênis/tênis tamanco óculos/óculos",
        "f": "luva meia bota sandália galocha alpargata",
    },
    "snack": {
        "m": "bolinho biscoito pão/pães pastel brigadeiro sanduíche picolé sorvete bombom beiju quindim pirulito",
        "f": "torta cocada pamonha tapioca empada coxinha broa rosquinha panqueca paçoca rapadura tortinha",
    },
    "recipe": {
        "m": "bolo pudim mingau caldo purê bolinho pão/pães biscoito manjar doce",
        "f": "torta sopa canjica salada vitamina geleia polenta broa panqueca",
    },
    "dish": {
        "m": "bolo pudim mingau macarrão cuscuz/cuscuzes chá suco caldo queijo café purê iogurte",
        "f": "sopa canjica salada farofa vitamina pipoca polenta limonada gelatina",
    },
    "fruit": {
        "m": "caju abacaxi maracujá mamão limão morango coco caqui figo abacate pêssego melão umbu",
        "f": "manga banana goiaba laranja melancia jabuticaba pitanga acerola uva maçã pera amora carambola graviola "
        "tangerina ameixa framboesa",
    },
    "pet": {
        "m": "gato cachorro coelho papagaio jabuti periquito hamster/hamsters gatinho cachorrinho",
        "f": "gata cachorra coelha tartaruga calopsita gatinha cachorrinha",
    },
    "farm": {
        "m": "pato galo ganso cavalo burro bezerro carneiro porquinho bode cabrito potro peru marreco cordeiro boi/bois",
        "f": "galinha vaca ovelha égua cabra gansa",
    },
    "singer": {
        "m": "sapo passarinho grilo sabiá bem-te-vi canário tico-tico pardal curió",
        "f": "coruja cigarra rã perereca pomba",
    },
    "critter": {
        "m": "beija-flor pombo besouro vaga-lume esquilo ouriço caracol lagarto ratinho pica-pau gafanhoto caramujo "
        "louva-a-deus/louva-a-deus joão-de-barro/joões-de-barro",
        "f": "formiga abelha borboleta joaninha aranha lagartixa andorinha libélula mariposa garça minhoca centopeia",
    },
    "wild": {
        "m": "macaco tucano jacaré tatu tamanduá quati boto veado lobo-guará/lobos-guarás gambá sagui bicho-preguiça/"
        "bichos-preguiça gavião urubu cágado",
        "f": "capivara onça anta cutia lontra raposa arara maritaca paca jaguatirica ema seriema jiboia",
    },
    "outdoor": {
        "m": "parque jardim quintal bosque sítio campo pomar morro porto lago rio riacho pátio mirante "
        "gramado pasto canteiro",
        "f": "praia praça rua ponte floresta mata lagoa montanha colina fazenda horta feira estrada trilha vila ilha "
        "caverna calçada cachoeira clareira plantação chácara",
    },
    "indoor": {
        "m": "quarto sótão/sótãos porão celeiro museu circo teatro galpão ateliê mercado corredor laboratório",
        "f": "cozinha sala biblioteca escola padaria sapataria oficina garagem varanda loja estação sorveteria livraria "
        "farmácia igreja despensa cabana lavanderia",
    },
    "shop": {
        "m": "mercado empório bazar mercadinho",
        "f": "feira quitanda mercearia",
    },
    "yard": {
        "m": "jardim quintal sítio pomar",
        "f": "horta chácara fazenda",
    },
    "square": {
        "m": "parque pátio campo gramado jardim bosque",
        "f": "praça rua colina praia vila",
    },
    "water": {"m": "rio lago riacho açude", "f": "lagoa represa"},
    "far": {
        "m": "porto morro mirante rio bosque",
        "f": "ilha montanha floresta cachoeira praia caverna vila fazenda lagoa mata",
    },
    "garden": {
        "m": "regador ancinho carrinho balde",
        "f": "enxada pá peneira cesta",
    },
    "keepsake": {
        "m": "selo botão cartão adesivo",
        "f": "moeda concha pedra figurinha tampinha bolinha fita chave miçanga",
    },
    "chamber": {
        "m": "quarto sótão/sótãos porão corredor ateliê celeiro galpão",
        "f": "cozinha sala garagem varanda despensa oficina biblioteca cabana lavanderia",
    },
    "under": {
        "m": "sofá banco berço piano",
        "f": "cama mesa cômoda escrivaninha poltrona rede",
    },
    "furniture": {
        "m": "armário fogão travesseiro balcão tapete baú guarda-roupa",
        "f": "cadeira escada estante geladeira gaveta cortina porta janela prateleira lareira",
    },
    "tree": {
        "m": "cajueiro coqueiro limoeiro abacateiro pinheiro",
        "f": "árvore mangueira jabuticabeira bananeira goiabeira laranjeira jaqueira",
    },
    "outspot": {
        "m": "portão muro poço galinheiro barril tronco arbusto cercado tanque balanço",
        "f": "cerca roseira carroça caixa-d'água/caixas-d'água carroceria fonte",
    },
    "bond": {"m": "amigo vizinho", "f": "amiga vizinha"},
    "kid": {"m": "menino garoto", "f": "menina garota"},
    "kin": {
        "m": "avô pai tio padrinho irmão/irmãos primo bisavô",
        "f": "avó mãe tia madrinha irmã prima bisavó",
    },
    "fixer": {
        "m": "relojoeiro marceneiro sapateiro mecânico ferreiro inventor/inventores alfaiate serralheiro",
        "f": "costureira inventora mecânica relojoeira marceneira",
    },
    "seller": {
        "m": "padeiro quitandeiro sorveteiro livreiro vendedor doceiro pescador",
        "f": "vendedora padeira quitandeira doceira",
    },
    "grower": {"m": "jardineiro fazendeiro vizinho lavrador", "f": "jardineira fazendeira vizinha lavradora"},
    "rescuer": {"m": "bombeiro veterinário enfermeiro vizinho", "f": "veterinária enfermeira bombeira vizinha"},
    "teacher": {"m": "professor diretor porteiro bibliotecário", "f": "professora diretora bibliotecária porteira"},
    "postal": {"m": "carteiro porteiro vizinho mensageiro", "f": "vizinha porteira mensageira"},
    "guide": {"m": "barqueiro pescador maquinista", "f": "pescadora barqueira bióloga"},
    "artist": {"m": "músico pintor palhaço/palhaços", "f": "pintora bordadeira cantora bailarina rendeira médica"},
    "sway": {
        "m": "galho capim coqueiro bambu girassol cipó arbusto",
        "f": "flor planta palmeira samambaia folha bananeira",
    },
    "blow": {
        "m": "graveto",
        "f": "folha pétala semente pluma pena flor",
    },
    "veg": {
        "m": "feijão milho tomate pimentão pepino repolho quiabo chuchu nabo",
        "f": "abóbora alface cenoura couve beterraba mandioca ervilha cebola",
    },
    "flower": {
        "m": "girassol manjericão lírio cravo",
        "f": "roseira margarida orquídea violeta samambaia hortelã/hortelãs tulipa dália",
    },
    # Nouns that the sentences name themselves; the checker needs their gender.
    "literal": {
        "m": "dia domingo sábado feriado sol vento calor frio fim começo meio almoço lanche verão inverno outono céu "
        "sorriso silêncio abraço barulho cheiro pé olho dedo caminho lado pedaço nome presente conselho problema "
        "momento instante minuto grupo bicho ruído pulo passo aniversário mês/meses ano fundo canto alto medo "
        "trabalho joelho rosto som tempo bairro mundo jogo desenho papel caco jeito cuidado prêmio trem "
        "ônibus/ônibus barco recado dono ensaio tesouro nó cometa fogo punhado trovão temporal estalo suspiro "
        "pedido troco saco vidro buraco leite castelo concurso cartaz convite capitão/capitães tijolo poema "
        "pássaro arco-íris/arco-íris tamanho truque couro algodão sobrado prédio apartamento gemido carinho "
        "queixo fôlego dinheiro bichinho linho tricô crochê elevador",
        "f": "manhã tarde noite semana férias/férias chuva festa aula sesta vez ideia história surpresa alegria "
        "saudade vontade pressa ajuda água lua estrela sorte hora voz mão/mãos perna cabeça orelha canção "
        "pergunta resposta notícia viagem família placa pista criança gente turma casa luz linha ponta frente pata terra "
        "receita farinha corrida largada segunda terça quarta quinta sexta ferramenta cola peça roda tinta "
        "madeira lã coisa passagem gota vela coragem paciência calma verdade desculpa foto letra jangada margem "
        "correnteza tábua seta cruz companhia barraca banca atenção entrada comida cova piada véspera pitada "
        "rampa diversão delicadeza palma graça fome paz sombra",
    },
}
"""Semantic class -> gender ("m" or "f") -> nouns in the singular (`singular/plural` where irregular)."""

UNIONS: dict[str, str] = {
    "obj": "toy instrument device optic container thing wear garden pan keepsake",
    "fixable": "toy instrument device",
    "gift": "toy instrument wear keepsake",
    "spot": "under furniture tree outspot",
    "inspot": "under furniture",
    "yardspot": "tree outspot",
    "food": "snack dish fruit",
    "bite": "snack fruit",
    "animal": "pet singer critter",
    "creature": "pet farm singer critter",
    "plant": "veg flower",
    "job": "fixer seller grower rescuer teacher postal guide artist",
    "place": "outdoor indoor",
}
"""Class made of several others; the members keep their own class, hence their own adjectives."""



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
