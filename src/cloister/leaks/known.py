"""Names that are written as two words and are nobody's: places, brands, feasts, headings.

Whoever runs a service knows many more of its own: `LeakDetector.seed` takes them.
"""

from __future__ import annotations

KNOWN = frozenset(
    name.strip().casefold().replace(" ", "").replace("\n", "")
    for name in """
    los angeles, san francisco, san diego, san jose, san antonio, las vegas, new orleans, new york, new jersey,
    new mexico, new hampshire, new zealand, new delhi, new england, new year, new years, north carolina, south carolina,
    north dakota, south dakota, west virginia, rhode island, washington dc, salt lake, lake city, york city,
    kansas city, oklahoma city, mexico city, new orleans, santa monica, santa barbara, santa fe, santa cruz,
    santa clara, santa ana, palo alto, mountain view, silicon valley, long beach, long island, palm beach,
    palm springs, fort worth, fort lauderdale, st louis, saint louis, st petersburg, st paul, baton rouge, el paso,
    grand rapids, grand canyon, colorado springs, virginia beach, miami beach, beverly hills, hong kong, abu dhabi,
    saudi arabia, sri lanka, costa rica, puerto rico, el salvador, south korea, north korea, south africa,
    north america, south america, latin america, central america, united states, united kingdom, united nations,
    united airlines, united arab, arab emirates, great britain, northern ireland, new south, south wales,
    czech republic, dominican republic, middle east, far east, near east, eastern europe, western europe,
    european union, european commission, buenos aires, rio de, sao paulo, tel aviv, kuala lumpur, ho chi,
    ivory coast, sierra leone, papua guinea, cape town, cape verde, burkina faso, british columbia, nova scotia,
    st johns, red sea, black sea, dead sea, north sea, baltic sea, pacific ocean, atlantic ocean, indian ocean,
    golden gate, times square, central park, wall street, main street, white house, supreme court, high court,
    black friday, cyber monday, good friday, christmas eve, christmas day, valentines day, mothers day, fathers day,
    labor day, memorial day, independence day, martin luther, luther king, st patricks, merry christmas, happy birthday,
    happy new, happy holidays, good morning, good evening, good afternoon, good night, kind regards, best regards,
    warm regards, customer service, customer support, customer care, technical support, help center, help desk,
    contact us, call center, live chat, order number, order status, order id, order history, order details,
    tracking number, phone number, email address, first name, last name, full name, zip code, postal code,
    credit card, debit card, gift card, gift cards, bank account, account number, account settings, account balance,
    card number, social security, security number, security code, drivers license, driver license, license plate,
    passport number, date of, billing address, shipping address, home address, street address, delivery address,
    user name, user id, booking id, booking reference, confirmation number, confirmation code, reference number,
    privacy policy, terms of, return policy, refund policy, shipping policy, estimated delivery, delivery date,
    delivery time, next steps, key points, key features, pro tip, pro tips, side note, step one, step two,
    google maps, google drive, google docs, google cloud, google chrome, google play, google analytics, google pay,
    apple pay, apple watch, apple music, apple store, app store, play store, microsoft office, microsoft word,
    microsoft excel, microsoft teams, microsoft azure, visual studio, studio code, amazon prime, amazon web,
    web services,
    facebook messenger, face book, you tube, social media, machine learning, deep learning, data science,
    artificial intelligence, neural network, neural networks, language model, language models, chat gpt, open ai,
    stack overflow, stack exchange, git hub, source code, operating system, windows server, mac os, bank of,
    wells fargo,
    american express, american airlines, delta airlines, southwest airlines, british airways, air france, air canada,
    burger king, taco bell, pizza hut, whole foods, trader joes, best buy, home depot, coca cola, general motors,
    land rover, mercedes benz, rolls royce, aston martin, alfa romeo, harley davidson, star wars, star trek,
    harry potter,
    game of, taylor swift, elon musk, bill gates, steve jobs, donald trump, joe biden, barack obama, hillary clinton,
    albert einstein, isaac newton, william shakespeare, jane austen, mark twain, world war, civil war, cold war,
    world cup, world series, super bowl, olympic games, premier league, champions league, major league, grand prix,
    red cross, nobel prize, national park, national parks, yellow stone, high school, middle school, elementary school,
    public school, community college, state university, medical center, health insurance, health care, mental health,
    life insurance, car insurance, travel insurance, real estate, stock market, interest rate, interest rates,
    monday morning, monday afternoon, friday evening, friday night, saturday morning, saturday night, sunday morning,
    frankfurt am, bad homburg, vielen dank, guten tag, guten morgen, guten abend, mit freundlichen,
    freundlichen gruessen,
    freundliche gruesse, deutsche bahn, deutsche bank, deutsche post, deutsche telekom, schoene gruesse,
    buenos dias, buenas tardes, buenas noches, muchas gracias, por favor, feliz navidad, estados unidos, america latina,
    reino unido, ciudad de, nueva york, bonjour madame, bonne journee, bonne soiree, merci beaucoup, etats unis,
    service client, cote divoire, aix en, credit agricole
    """.split(",")
)
